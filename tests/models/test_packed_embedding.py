"""An embedding that is stored quantized, over several starts."""

from pathlib import Path

import pytest
import torch

import inferplane.hw as hw
from inferplane.checkpoint.gguf_tensors import GgufTensors
from inferplane.checkpoint.source import open_model
from inferplane.runner import packed
from tests.models.families import llama
from tests.models.oracle import make
from tests.models.serving import ReferenceBackend
from tests.models.test_quantized import WIDE, every, logits, plugins, serve, write_gguf


def test_a_quantized_embedding_is_made_dense_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where tensors are in host memory: it is kept with the packed weights."""
    monkeypatch.setenv("INFERPLANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed, "SMALLEST", 0)
    oracle, _ = make(tmp_path, llama(**WIDE))
    write_gguf(tmp_path / "x.gguf", oracle, {"": "Q4_0"}, head="Q8_0")
    asked: list[str] = []
    plain = GgufTensors.__getitem__

    def watch(self: GgufTensors, name: str) -> torch.Tensor:
        asked.append(name)
        return plain(self, name)

    def start(memory: str) -> tuple[bool, torch.Tensor]:
        """Whether the embedding was read, and logits."""
        info = hw.DeviceInfo(
            backend="plain",
            torch_device="cpu",
            name="plain torch",
            traits=hw.Traits(memory=memory),  # type: ignore[arg-type]
        )
        monkeypatch.setattr(ReferenceBackend, "probe", staticmethod(hw.impl(lambda: [info])))
        asked.clear()
        result = logits(serve(open_model(str(tmp_path / "x.gguf")), plugins(every)))
        return "model.embed_tokens.weight" in asked, result

    monkeypatch.setattr(GgufTensors, "__getitem__", watch)
    assert not start("discrete")[1].isnan().any()
    assert not (tmp_path / "cache").exists()
    (first, plain_logits), (second, same) = start("host"), start("host")
    assert (first, second) == (True, False)
    assert torch.equal(plain_logits, same)
    assert torch.equal(plain_logits, start("discrete")[1])
