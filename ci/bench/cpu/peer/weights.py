"""The same weights in the form that each engine reads, made once and kept.

smollm2 (or any GGUF file of the llama or qwen3 kind): the file's values, dequantized to bf16 and
quantized again where a format asks for it. qwen3-0.6b: random bf16 weights of that shape.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.bench.cpu.peer.install import PEERS, Unavailable, environment, last_line
from ci.bench.gpu.models import COMMON, SHAPES

from inferplane.checkpoint.demo_model import NAME, fetch
from inferplane.checkpoint.source import GgufModel, open_model
from inferplane.env import cache_dir
from inferplane.text.gguf_vocab import convert, special_tokens

WRITE_GGUF = Path(__file__).parent / "drivers" / "write_gguf.py"
INT4_GROUP = "64"
"""OpenVINO's default of 128 does not divide SmolLM2's 576 inputs"""


@dataclass
class Weights:
    """Files of one model below `folder`; `pythons` has the peers' interpreters by name."""

    name: str
    folder: Path
    pythons: dict[str, Path]
    gguf: Path | None
    """the file that the model comes from, None for random weights"""

    def bf16(self) -> Path:
        """Hugging Face layout with tokenizer."""
        return self._made("bf16", self._write_stored if self.gguf else self._write_random)

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.bf16() / "config.json").read_text())
        return config

    def as_gguf(self, kind: str) -> Path:
        """BF16, Q8_0, Q4_0 or Q4_1; the model's own file where it is of that kind."""
        if self.gguf is not None and kind in self.gguf.name.upper():
            return self.gguf
        if self.gguf is None and kind == "BF16":
            source = self.bf16()
            return self._made("BF16.gguf", lambda to: self._gguf(str(source), str(to)))
        source = self.gguf or self.as_gguf("BF16")
        return self._made(f"{kind}.gguf", lambda to: self._gguf(str(source), str(to), kind))

    def openvino(self, kind: str) -> Path:
        """OpenVINO's format; `kind`: fp16, int8 or int4."""
        source, tool = self.bf16(), self._python("openvino").parent / "optimum-cli"
        command = [str(tool), "export", "openvino", "--model", str(source)]
        command += ["--task", "text-generation-with-past", "--weight-format", kind]
        if kind == "int4":
            command += ["--group-size", INT4_GROUP, "--ratio", "1.0"]
        return self._made(f"openvino-{kind}", lambda to: self._run("openvino", [*command, str(to)]))

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        """A file or folder that has its name only when it is complete."""
        target = self.folder / name
        if not target.exists():
            part = self.folder / f"part-{name}"
            shutil.rmtree(part, ignore_errors=True)
            part.unlink(missing_ok=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            print(f"making {self.name}/{name}", flush=True)
            make(part)
            os.replace(part, target)
        return target

    def _python(self, peer: str) -> Path:
        if peer not in self.pythons:
            raise Unavailable(f"weights not converted: that takes {peer}, which is not installed")
        return self.pythons[peer]

    def _gguf(self, *arguments: str) -> None:
        command = [str(self._python("llama.cpp")), str(WRITE_GGUF), *arguments]
        self._run("llama.cpp", command)

    def _run(self, peer: str, command: list[str]) -> None:
        log = self.folder / "convert.log"
        with log.open("w") as out:
            changed = environment(PEERS[peer].running)
            done = subprocess.run(command, env=changed, stdout=out, stderr=subprocess.STDOUT)
        if done.returncode:
            raise Unavailable(f"weights not converted: {last_line(log)} (all of it: {log})")

    def _write_stored(self, to: Path) -> None:
        import torch
        from safetensors.torch import save_file

        source = open_model(str(self.gguf))
        assert isinstance(source, GgufModel)
        tensors = source.tensors()
        to.mkdir()
        dense = {name: tensors[name].to(torch.bfloat16).contiguous() for name in tensors.names()}
        save_file(dense, to / "model.safetensors", {"format": "pt"})
        (to / "config.json").write_text(json.dumps(source.config, indent=2))
        write_tokenizer(to, source)

    def _write_random(self, to: Path) -> None:
        import torch
        import transformers

        config = dict(COMMON | SHAPES[self.name])
        kind = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(kind, dtype=torch.bfloat16)
        model.save_pretrained(to)
        demo = open_model(NAME)
        assert isinstance(demo, GgufModel)
        write_tokenizer(to, demo)  # a smaller vocabulary does


def write_tokenizer(folder: Path, source: GgufModel) -> None:
    """The tokenizer of a GGUF file as transformers writes it."""
    import transformers

    file = source.file
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=convert(file), **special_tokens(file)
    )
    made.chat_template = file.get("tokenizer.chat_template")
    made.save_pretrained(folder)


def find(model: str, shape: str | None, peers: Path, pythons: dict[str, Path]) -> Weights:
    """`shape` names random weights, else `model` is smollm2 or a GGUF file."""
    if shape is not None:
        return Weights(shape, peers / "weights" / shape, pythons, None)
    path = fetch(cache_dir()) if model == NAME else Path(model)
    if path.suffix != ".gguf":
        sys.exit(f"MODEL is {model}, must be {NAME} or a .gguf file; or use --shape")
    return Weights(path.stem, peers / "weights" / path.stem, pythons, path.resolve())
