"""Packed weights that went through a file give the same bits, alone and in a model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inferplane.checkpoint.source import open_model
from inferplane.config import Config
from inferplane.engine import open_engine
from inferplane.hw import CANONICAL, DeviceInfo, Support
from inferplane.hw.ops import TABLE
from inferplane.runner import packed
from inferplane.testing.op_run import Built
from inferplane.testing.ops import conformance_cases
from inferplane.testing.tiny import TinySource
from inferplane_xeon import kernels, plugin
from inferplane_xeon.ops import implementations
from tests.models.serving import Served, ask, random_prompt

pytest.importorskip("inferplane_xeon._kernels", reason="the kernels are not built")
INFO = DeviceInfo(backend="xeon", torch_device="cpu", name="test", arch="avx2")
DEVICE: Any = plugin.create_device(INFO, {})


@pytest.mark.parametrize("op", ["linear", "logits"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_product_can_be_kept(op: str, dtype: str) -> None:
    halves, kept_specs = set(), 0
    for spec in conformance_cases(op, (dtype,)):
        if spec.determinism != "run":
            continue
        for name, impl in implementations():
            if name != op or not isinstance(impl.supports(spec, DEVICE), Support):
                continue
            inputs = TABLE[op].inputs(spec, seed=3)
            kept = Built(op, impl, spec, DEVICE, CANONICAL).keep(inputs)
            later = Built(op, impl, spec, DEVICE, CANONICAL)
            fresh = later(inputs).results[0]
            assert torch.equal(later(inputs, kept).results[0], fresh), spec
            wrong = {key: tensor ^ 1 for key, tensor in kept.items() if key == "data"}
            if wrong:  # the data that was given is what is used
                assert not torch.equal(later(inputs, kept | wrong).results[0], fresh)
            halves.add("unit" in kept)
            kept_specs += 1
    assert kept_specs > 5
    assert (True in halves) == (dtype == "bfloat16")


def test_the_form_follows_the_code_that_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    form = kernels.packed_form()
    assert form == kernels.packed_form()
    kernels.packed_form.cache_clear()
    read = Path.read_bytes
    try:
        for changed in ("_kernels", "quantized", "kernels.py"):
            with monkeypatch.context() as patch:
                patch.setattr(
                    Path, "read_bytes", lambda p, c=changed: read(p) + b"!" * (c in p.name)
                )
                assert kernels.packed_form() != form
            kernels.packed_form.cache_clear()
    finally:
        kernels.packed_form.cache_clear()
    assert kernels.packed_form() == form


@pytest.mark.parametrize(
    "settings",
    [{"quantization": name} for name in ("none", "int8", "int4", "fp8")]
    + [{"quantization": "int4", "dtype": "float32", "input_quantization": "none"}],
    ids=lambda settings: "-".join(settings.values()),
)
def test_a_model_gives_the_same_bits_from_the_file(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("INFERPLANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed, "SMALLEST", 0)
    source = TinySource("llama")
    save_file(dict(source.tensors()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(source.config))
    config = Config(model=str(tmp_path), device="xeon", kv_cache_tokens=1024)
    config = replace(config, **settings)

    def start() -> torch.Tensor:
        served = Served(open_engine(config, open_model(str(tmp_path))))
        served.run([ask("a", random_prompt(20, 90), 3)])
        return torch.stack(list(served.logits("a").values()))

    with caplog.at_level("INFO", "inferplane.runner.packed"):
        first = start()
        assert torch.equal(start(), first)
    assert ["7 packed" in caplog.messages[0], "7 mapped" in caplog.messages[1]] == [True, True]
