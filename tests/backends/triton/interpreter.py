"""Where the Triton kernels of these tests run: on the accelerator of this machine, else in
Triton's interpreter on the CPU. Import it before any kernel. Skips where Triton is missing."""

import os

import pytest
import torch

from inferplane.hw import DeviceInfo, TorchDevice

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined

pytest.importorskip("triton", reason="triton is not installed", exc_type=ImportError)

from triton.runtime import interpreter  # noqa: E402

TORCH_DEVICE = "cuda:0" if ON_GPU else "cpu"
DEVICE = TorchDevice(DeviceInfo(backend="triton", torch_device=TORCH_DEVICE, name="kernels"))

_patch = interpreter._patch_lang_tensor


def _patched(tensor: type, *rest: object) -> None:
    """numpy 2.4 has no int() of an array with one element, which is how the interpreter (3.6)
    reads the bounds of a loop."""
    _patch(tensor, *rest)
    tensor.__index__ = lambda self: int(self.handle.data.item())  # type: ignore[attr-defined]


interpreter._patch_lang_tensor = _patched
