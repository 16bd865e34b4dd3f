"""Kernels of Intel Extension for PyTorch, where it is installed beside the torch that it needs.

The library has reached its end of life and works with one version of torch, so these are second
choices, which `--op linear=ipex.linear` or `--op attention.paged=ipex.attention` ask for. Of the
library only its compiled part is loaded, and only when such an op is built: the Python part ends
the process beside another torch, and cannot be imported beside recent releases of transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferplane.errors import DeviceError
from inferplane.hw.op import Bound, BuildContext, Reject, Support, describe
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane.hw.probing import installed_version

if TYPE_CHECKING:
    from torch import Tensor

    from inferplane.hw.batch import ForwardBatch
    from inferplane.hw.device import Device

LIBRARY = "intel_extension_for_pytorch"
COMPILED = "libintel-ext-pt-cpu.so"
LAYOUTS = ("head_major",)
SUPPORT = Support(
    priority=40,
    invariance="run",
    capture="no",  # its operations tell no shapes in advance
    notes="Intel Extension for PyTorch, which is end of life",
)


@dataclass(frozen=True, slots=True)
class Ipex:
    """One op on a kernel of the library: `problem` says why not, `bind` makes the callable."""

    name: str
    problem: Callable[[Any], Reject | None]
    bind: Callable[[Any, BuildContext], Bound]
    layouts: tuple[str, ...] = ()

    def supports(self, spec: Any, device: "Device") -> Support | Reject:
        missing = library_problem(installed_version(LIBRARY), installed_version("torch"))
        return missing or self.problem(spec) or replace(SUPPORT, layouts=self.layouts)

    def build(self, spec: Any, ctx: BuildContext) -> Bound:
        load()
        return self.bind(spec, ctx)


def library_problem(version: str | None, torch: str | None) -> Reject | None:
    """Why the library of this version, if any, does not work with this torch."""
    if version is None:
        return Reject("library", f"{LIBRARY} is not installed")
    own, there = (".".join((v or "0").split(".")[:2]) for v in (version, torch))
    if own != there:
        return Reject("library", f"{LIBRARY} {own} needs torch {own}, there is {there}")
    return None


@cache
def load() -> None:
    """Makes the library's operators known to torch. Raises DeviceError."""
    import torch

    try:
        found = [f for f in distribution(LIBRARY).files or () if f.name == COMPILED]
        if not found:
            raise OSError(f"{COMPILED} is missing")
        torch.ops.load_library(str(Path(str(found[0].locate()))))
    except (OSError, PackageNotFoundError) as error:
        raise DeviceError(
            f"{LIBRARY} is installed but cannot be loaded ({error}): reinstall or uninstall it"
        ) from error


def linear_problem(spec: LinearSpec | LogitsSpec) -> Reject | None:
    if spec.scheme:
        return Reject("feature", f"the weights are quantized: {describe(spec.scheme)}")
    if spec.dtype not in ("bfloat16", "float32"):
        return Reject("dtype", f"{spec.dtype}: bfloat16 and float32 alone")
    return None


def linear(spec: LinearSpec, ctx: BuildContext) -> Bound:
    """run(x[M, K], packed) -> y[M, N]; packed: the library's own object, the bias inside"""
    import torch

    def prepack(weight: "Tensor", bias: "Tensor | None" = None) -> Any:
        return torch.ops.ipex_prepack.linear_prepack(weight, bias, None)

    return Bound(run=torch.ops.ipex_prepack.linear_run, prepack=prepack)


def attention_problem(spec: AttentionSpec) -> Reject | None:
    if spec.tree or spec.sinks:
        return Reject("feature", f"{'tree masks' if spec.tree else 'sinks'} are not supported")
    if spec.window == 1:
        return Reject("feature", "a window of 1 token counts as none")
    if spec.kv.dtype != spec.dtype:
        return Reject("dtype", f"a cache of {spec.kv.dtype} with queries of {spec.dtype}")
    return None


def attention(spec: AttentionSpec, ctx: BuildContext) -> Bound:
    """run(q[T, Hq, D], batch) -> o[T, Hq, D]; padding rows are zero"""
    import torch

    handle, group, dtype = ctx.kv(spec.layer), spec.group, spec.dtype
    window = (spec.window - 1, 0) if spec.window else (-1, -1)
    attend = torch.ops.torch_ipex.flash_attn_varlen_func

    def run(q: "Tensor", batch: "ForwardBatch", sinks: "Tensor | None" = None) -> "Tensor":
        keys, values = handle.layout.split(handle.data)  # [pages, page_size, Hkv, D] views
        out = ctx.empty(q.shape, dtype).zero_()
        kv_start = torch.zeros_like(batch.q_start)  # i32[B + 1]
        torch.cumsum(batch.seq_len, 0, dtype=torch.int32, out=kv_start[1:])
        attend(
            out,
            q.contiguous(),
            keys.transpose(1, 2),  # [pages, Hkv, page_size, D] contiguous
            values.transpose(1, 2),
            batch.q_start,
            kv_start,
            batch.max_q,
            batch.max_kv,
            spec.scale,
            True,  # causal
            batch.page_table[group],
            None,  # no alibi
            *window,
            "auto",
            1.0,
            1.0,
            spec.softcap or -1.0,
        )
        return out

    return Bound(run=run)


def implementations() -> list[tuple[str, Ipex]]:
    return [
        ("attention.paged", Ipex("ipex.attention", attention_problem, attention, LAYOUTS)),
        ("linear", Ipex("ipex.linear", linear_problem, linear)),
    ]
