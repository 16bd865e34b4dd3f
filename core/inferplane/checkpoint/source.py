"""Where a model comes from: a folder, a .gguf file, the hub or the demo model, all alike.

Code in a model's folder is never run. torch is imported only when tensors are asked for.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from inferplane.checkpoint import demo_model
from inferplane.checkpoint.gguf import GgufFile
from inferplane.checkpoint.gguf_config import read_config, read_generation_config
from inferplane.env import cache_dir
from inferplane.errors import ModelError
from inferplane.text.tokenizer import Tokenizer, load_folder, load_gguf

if TYPE_CHECKING:
    import torch

FORMS = (
    f"a folder with config.json and safetensors, a .gguf file, a hub id such as Qwen/Qwen3-8B,"
    f" or {demo_model.NAME}"
)

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt"]
HUB_IGNORED = ["*/*", "consolidated*"]
"""folders with other formats of the same model, and a second copy of the weights"""


class TensorSource(Protocol):
    """The weights under Hugging Face names, memory-mapped; each is read when asked for."""

    def names(self) -> list[str]: ...

    def __iter__(self) -> Iterator[str]: ...

    def __len__(self) -> int: ...

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> "torch.Tensor": ...

    def nbytes(self, name: str) -> int:
        """Size of the tensor, without reading it."""
        ...


class ModelSource(Protocol):
    """A model that has been found. `config` has the layout of a Hugging Face config.json."""

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def generation_config(self) -> dict[str, Any]: ...

    def tokenizer(self, chat_template: str | None = None) -> Tokenizer:
        """`chat_template` is a file with a Jinja template to use instead of the model's."""
        ...

    def tensors(self) -> TensorSource: ...


def open_model(model: str, revision: str | None = None) -> ModelSource:
    """Find a model by what a user calls it; raises ModelError that lists the accepted forms."""
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model, re.ASCII) and ".." not in model
    try:
        path = Path(model).expanduser()
        exists = bool(model) and path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, an unknown user after ~
        raise ModelError(f"there is no model {model!r} ({error}): must be {FORMS}") from error
    if is_hub_id and not exists and path.suffix != ".gguf":
        return _open_folder(_fetch_from_hub(model, revision), model)
    if revision is not None:
        raise ModelError(f"--revision {revision} is for hub models, {model} is none")
    if exists and path.is_dir():
        return _open_folder(path, path.resolve().name)
    if path.suffix == ".gguf":
        if not exists:
            raise ModelError(f"model file {model} does not exist")
        return _open_gguf(path, path.stem)
    if exists:
        raise ModelError(f"model {model} is a file of unknown kind, must be {FORMS}")
    if model == demo_model.NAME:
        demo = _open_gguf(demo_model.fetch(cache_dir()), demo_model.NAME)
        return replace(demo, generation_config=demo.generation_config | demo_model.SAMPLING)
    raise ModelError(f"there is no model {model!r}: must be {FORMS}")


@dataclass(frozen=True)
class FolderModel:
    """config.json, safetensors files and tokenizer files in one folder."""

    name: str
    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]

    def tokenizer(self, chat_template: str | None = None) -> Tokenizer:
        template = _read_template(chat_template)
        return load_folder(self.path, self.config, self.generation_config, template)

    def tensors(self) -> TensorSource:
        from inferplane.checkpoint.quantized import QuantizedTensors, find_format
        from inferplane.checkpoint.safetensors import SafetensorsTensors

        tensors, found = SafetensorsTensors(self.path), find_format(self.config)
        return QuantizedTensors(tensors, found) if found else tensors


@dataclass(frozen=True)
class GgufModel:
    """Everything in one .gguf file."""

    name: str
    config: dict[str, Any]
    generation_config: dict[str, Any]
    file: GgufFile = field(repr=False)

    def tokenizer(self, chat_template: str | None = None) -> Tokenizer:
        template = _read_template(chat_template)
        return load_gguf(self.file, self.generation_config, template, cache_dir())

    def tensors(self) -> TensorSource:
        from inferplane.checkpoint.gguf_tensors import GgufTensors

        return GgufTensors(self.file, self.config)


def _open_folder(folder: Path, name: str) -> FolderModel:
    config = _read_json(folder / "config.json")
    if config is None:
        raise ModelError(f"{folder} has no config.json: a model must be {FORMS}")
    generation = _read_json(folder / "generation_config.json") or {}
    return FolderModel(name, folder, config, generation)


def _open_gguf(path: Path, name: str) -> GgufModel:
    file = GgufFile(path)
    return GgufModel(name, read_config(file), read_generation_config(file), file)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, has {type(value).__name__}")
    return value


def _read_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"--chat-template {path} cannot be read: {error}") from error


def _fetch_from_hub(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = f"{model!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        folder = snapshot_download(
            model, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED
        )
        return Path(folder)
    except GatedRepoError as error:
        raise ModelError(
            f"hub model {wanted} is gated: accept its terms on the hub and log in with"
            " `hf auth login`, or set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(
            f"hub model {wanted} does not exist or is private: check the name, or log in with"
            " `hf auth login`"
        ) from error
    except Exception as error:  # every way a network can fail, in the types of three packages
        raise ModelError(
            f"hub model {wanted} is not in the local cache and the hub cannot be reached"
            f" ({type(error).__name__}): check the network or HF_ENDPOINT, or fetch the model"
            f" elsewhere and give its folder; MODEL must be {FORMS}"
        ) from error
