"""What kernels of other packages have in common: whether the package is there, and what none of
them takes. Nothing here imports a package."""

from importlib.util import find_spec

from inferplane.hw import Device, Reject
from inferplane.hw.ops.attention import AttentionSpec


def missing(module: str, install: str) -> Reject | None:
    """`module` is what the package is imported as, `install` what pip calls it."""
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # the package around the module
        found = None
    return None if found else Reject("library", f"not installed: pip install {install}")


def untaken(spec: AttentionSpec, device: Device) -> Reject | None:
    """Types, layouts and features that all of these kernels lack."""
    if spec.dtype not in ("bfloat16", "float16"):
        return Reject("dtype", f"{spec.dtype} is not bfloat16 or float16")
    if spec.tree:
        return Reject("feature", "tree masks")
    if spec.kv.opaque:
        return Reject("layout", "needs pages with strides")
    return None


def major(device: Device) -> int:
    """First digit of the compute capability, 9 of sm_90; 0 if the device says none."""
    family, _, number = device.info.arch.partition("_")
    return int(number) // 10 if family == "sm" and number.isdecimal() else 0


def processors(device: Device) -> int:
    """Processors of the device: how many programs run at the same time."""
    import torch

    module = torch.get_device_module(device.info.torch_device)
    if not hasattr(module, "get_device_properties"):
        return 1
    properties = module.get_device_properties(device.info.torch_device)
    return int(getattr(properties, "multi_processor_count", 1))
