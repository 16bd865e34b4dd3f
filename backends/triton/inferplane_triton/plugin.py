"""Portable Triton kernels: ops only, for devices of other packages."""

from collections.abc import Iterable
from importlib.util import find_spec

from inferplane.hw import Compiler, Device, OpImpl, impl


@impl
def op_impls(device: Device) -> Iterable[tuple[str, OpImpl]]:
    if find_spec("triton") is None or not has_compiler(device):
        return []
    from inferplane_triton import quantized
    from inferplane_triton.attention import PagedAttention
    from inferplane_triton.derive import Derive
    from inferplane_triton.linear import InvariantLinear, InvariantLogits, Linear, Logits
    from inferplane_triton.normed import NormLinear, NormMLP
    from inferplane_triton.rowwise import AddRMSNorm, Glu, RMSNorm, RopeWrite
    from inferplane_triton.sampling import Draw, Embedding, Filter, Logprobs

    return [
        ("batch.derive", Derive()),
        ("attention.paged", PagedAttention()),
        ("qk_norm_rope_kvwrite", RopeWrite()),
        ("norm.rms", RMSNorm()),
        ("norm.add_rms", AddRMSNorm()),
        ("activation.glu", Glu()),
        ("linear", Linear()),
        ("linear", InvariantLinear()),
        ("linear", quantized.Linear()),
        ("norm_linear", NormLinear()),
        ("norm_mlp", NormMLP()),
        ("logits", Logits()),
        ("logits", InvariantLogits()),
        ("logits", quantized.Logits()),
        ("embedding", Embedding()),
        ("sampling.filter", Filter()),
        ("sampling.draw", Draw()),
        ("sampling.logprobs", Logprobs()),
    ]


@impl
def compiler(device: Device) -> Compiler | None:
    if find_spec("triton") is None or not has_compiler(device):
        return None
    from inferplane_triton import compilation

    return compilation.Compiler(device) if compilation.can_collect() else None


def has_compiler(device: Device) -> bool:
    """Triton's driver is for torch devices of this kind. It has none for the CPU."""
    from triton.runtime import driver

    try:
        kind = driver.active.get_active_torch_device().type
    except RuntimeError:  # no driver, or several
        return False
    return bool(kind == device.info.torch_device.partition(":")[0])
