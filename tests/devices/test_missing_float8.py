"""float8 asked of a GPU that does not have it: refused before a weight is read. The GPU is made up;
the kernels that are asked are the real ones."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from inferplane.config import Config
from inferplane.errors import ConfigError
from inferplane.hw import BackendInfo, Device, DeviceInfo, OpImpl, TorchDevice, impl
from inferplane.plugins import Plugins
from inferplane.runner.dry import check_memory
from inferplane.runner.prepare import prepare
from inferplane.testing.tiny import TinySource


class MadeUp:
    """A GPU of a given architecture, with the kernels that would serve it."""

    def __init__(self, arch: str) -> None:
        self.arch = arch

    @impl
    def backend_info(self) -> BackendInfo:
        return BackendInfo(name="made-up", version="1", devices=("made-up",), rank=0)

    @impl
    def probe(self) -> list[DeviceInfo]:
        name = f"a GPU of {self.arch}"
        return [DeviceInfo(backend="made-up", torch_device="cpu", name=name, arch=self.arch)]

    @impl
    def create_device(self, info: DeviceInfo, options: Mapping[str, Any]) -> Device:
        return TorchDevice(info)

    @impl
    def op_impls(self, device: Device) -> Iterable[tuple[str, OpImpl]]:
        from inferplane_cuda import scaled
        from inferplane_triton import quantized
        from inferplane_triton.attention import PagedAttention

        return [
            ("linear", scaled.Linear()),
            ("linear", quantized.Linear()),
            ("attention.paged", PagedAttention()),
        ]


class Unread(TinySource):
    def tensors(self) -> Any:
        raise AssertionError("a weight was read")


def start(arch: str, **settings: Any) -> Config:
    """All that is done before the weights are read."""
    plugins = Plugins()
    plugins.register("made-up", MadeUp(arch))
    values: dict[str, Any] = {"dtype": "bfloat16", "load_format": "dummy", "kv_cache_tokens": 512}
    config = Config(model="wide", device="made-up", **(values | settings))
    source = Unread("wide")
    prepared = prepare(config, source.config, plugins)
    check_memory(prepared, source)
    return prepared.config


ASKED = {
    "--quantization fp8": {"quantization": "fp8"},
    "--quantization fp8-block": {"quantization": "fp8-block"},
    "--kv-cache-dtype fp8_e4m3": {"kv_cache_dtype": "fp8_e4m3"},
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_gpu_without_float8_refuses_it(asked: str) -> None:
    with pytest.raises(ConfigError) as error:
        start("sm_80", **ASKED[asked])
    text = str(error.value)
    assert text.startswith(f"{asked} needs what a GPU of sm_80 has no hardware for (")
    assert "sm_80 has no float8_e4m3fn" in text and "leave it out" in text


@pytest.mark.parametrize("asked", ASKED)
def test_one_that_has_it_does_not(asked: str) -> None:
    for name, value in ASKED[asked].items():
        assert getattr(start("sm_90", **ASKED[asked]), name) == value


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization": "fp8", "op": ["linear=reference"]},
        {"kv_cache_dtype": "fp8_e4m3", "op": ["*=reference"]},
        {"quantization": "int8"},
    ],
    ids=str,
)
def test_what_is_asked_for_by_name_is_done(settings: dict[str, Any]) -> None:
    config = start("sm_80", **settings)
    assert all(getattr(config, name) == value for name, value in settings.items())
