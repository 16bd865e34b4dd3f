"""Which devices the pack brings kernels for: those that Triton has a driver for."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed", exc_type=ImportError)

from inferplane_triton import plugin


def device(torch_device: str) -> Any:
    return SimpleNamespace(info=SimpleNamespace(torch_device=torch_device))


class Driver:
    """Stands in for triton.runtime.driver."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    @property
    def active(self) -> Any:
        if not self.kind:
            raise RuntimeError("0 active drivers")
        return SimpleNamespace(get_active_torch_device=lambda: SimpleNamespace(type=self.kind))


@pytest.mark.parametrize("driver", ["", "cuda", "xpu"])
@pytest.mark.parametrize("kind", ["cpu", "cuda", "xpu", "zebra"])
def test_only_devices_that_triton_drives(
    driver: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton.runtime

    monkeypatch.setattr(triton.runtime, "driver", Driver(driver))
    assert plugin.has_compiler(device(f"{kind}:0")) == (kind == driver)
    if kind != driver:
        assert list(plugin.op_impls(device(f"{kind}:0"))) == []
