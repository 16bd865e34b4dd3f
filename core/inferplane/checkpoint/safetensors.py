"""The tensors of a safetensors checkpoint, in one file or in shards with an index.

The files are memory-mapped and tensors are views of them: nothing is copied and nothing is read
before it is used. Or tensors are brought to a device by a Staging. Names in the index are checked,
so that none leads out of the folder.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferplane.checkpoint.identity import FileState, identity
from inferplane.checkpoint.staging import Staging
from inferplane.errors import ModelError

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4}
ITEM_BYTES |= {"F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""types with more than one byte an item; all others (bool, int8, float8 ...) have one"""

TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}
TYPES |= {"I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
TYPES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""names in a header -> torch's, of types that a Staging brings; others are read by the package"""


class SafetensorsTensors:
    """Mapping from names to tensors; a file is opened when its first tensor is asked for.
    Implements weights.StoredSource and weights.StagedSource."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[Path, Any] = {}
        self._states: dict[Path, FileState] = {}
        self._headers: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._staging: Staging | None = None
        if (folder / INDEX).is_file():
            self._files = _read_index(folder)
        else:
            self._files = self._single_file()
        for path in set(self._files.values()) - set(self._states):
            self._states[path] = FileState.of(os.stat(path))

    def names(self) -> list[str]:
        return list(self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> "torch.Tensor":
        path, file = self._file_of(name)
        if self._staging is not None:
            start, header = self._header(path)
            found = header[name]
            if found["dtype"] in TYPES:
                return self._staging.read(path, start + found["data_offsets"][0], *_form(found))
        try:
            tensor: torch.Tensor = file.get_tensor(name)
        except Exception as error:  # the package raises its own type, OSError and ValueError
            raise ModelError(f"{path}: tensor {name!r} cannot be read: {error}") from error
        return tensor

    def stage(self, staging: Staging) -> None:
        self._staging = staging

    def nbytes(self, name: str) -> int:
        """Size of the tensor, from the header alone."""
        path, file = self._file_of(name)
        try:
            part = file.get_slice(name)
        except Exception as error:
            raise ModelError(f"{path}: tensor {name!r} cannot be read: {error}") from error
        items: int = math.prod(part.get_shape())
        return items * ITEM_BYTES.get(part.get_dtype(), 1)

    def _single_file(self) -> dict[str, Path]:
        path = self._folder / SINGLE
        if not path.is_file():
            found = sorted(p.name for p in self._folder.glob("*.safetensors"))
            if len(found) != 1:
                raise ModelError(
                    f"{self._folder} has neither {SINGLE} nor {INDEX}"
                    + (f", only {', '.join(found)}" if found else "")
                    + ": weights are read from safetensors files and from .gguf files"
                )
            path = self._folder / found[0]
        self._states[path] = FileState.of(os.stat(path))
        return dict.fromkeys(self._handle(path).keys(), path)

    def identity(self) -> str | None:
        return identity(sorted(self._states.items()))

    def release(self) -> None:
        """Close the files; what tensors still refer to stays mapped."""
        self._open.clear()

    def _file_of(self, name: str) -> tuple[Path, Any]:
        if name not in self._files:
            raise ModelError(f"{self._folder} has no tensor {name!r}")
        path = self._files[name]
        return path, self._handle(path)

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            from safetensors import safe_open

            try:
                self._open[path] = safe_open(str(path), framework="pt", device="cpu")
            except Exception as error:
                raise ModelError(
                    f"{path} is not a whole safetensors file ({error}): fetch it again"
                ) from error
        return self._open[path]

    def _header(self, path: Path) -> tuple[int, dict[str, Any]]:
        """(where the data starts, what is said of each tensor) of a file that the package has
        opened, which is when it checks all of it."""
        if path not in self._headers:
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                self._headers[path] = 8 + size, json.loads(file.read(size))
        return self._headers[path]


def _form(found: dict[str, Any]) -> "tuple[torch.dtype, list[int]]":
    import torch

    return getattr(torch, TYPES[found["dtype"]]), found["shape"]


def _read_index(folder: Path) -> dict[str, Path]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_bytes())
        names = index["weight_map"]
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise ModelError(f"{path}: weight_map does not map tensor names to file names")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is not a checkpoint index: {error!r}") from error
    shards = sorted(set(names.values()))
    for shard in shards:
        # A plain file name: a hub's cache links to files elsewhere, so links must be allowed.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise ModelError(f"{path} names {shard!r}, must be a .safetensors file of the folder")
    missing = [s for s in shards if not (folder / s).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards that {INDEX} names: "
            + ", ".join(missing[:3])
            + (" ..." if len(missing) > 3 else "")
            + ": fetch the model again"
        )
    return {name: folder / shard for name, shard in names.items()}
