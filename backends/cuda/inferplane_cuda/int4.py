"""linear and logits over INT4 weights: own kernels for up to MOST rows; more are multiplied by a
part of W at a time that was turned back to the op's type and still is in L2.

All read one packing. As the kernel depends on the number of rows, so do the last bits.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.op import describe
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane.hw.quantization import QuantizedWeight
from inferplane_cuda.compiler import Compiler
from inferplane_cuda.launch import Kernel, Module
from inferplane_cuda.packed import STEP, STRIP, Weights, pack

if TYPE_CHECKING:
    from torch import Tensor

MEASURED = "sm_90"
GROUPS = (32, 64, 128)
SOURCE = "int4.cu"
MOST = 128
"""rows of x up to which W is multiplied as it is stored (estimated)"""
PART_BYTES = 32 << 20
"""of dequantized weights at a time: less than the L2 of the GPUs that this is for (H100: 50 MB)"""
KEY = "cuda.dequantized"


@dataclass(frozen=True, slots=True)
class Cut:
    """How a product is cut: see kernels/int4.cu."""

    rows: int
    strips: int
    warps: int
    depth: int
    across: int = 1
    scaled: bool = False

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def columns(self) -> int:
        return STRIP * self.strips * self.across

    @property
    def shared_bytes(self) -> int:
        along, tiles = self.warps // self.across, -(-self.rows // 8)
        ring = along * self.depth * self.rows * 320
        return max(ring, along * 512 * tiles * self.strips * self.across)

    def options(self, w: Weights, half: bool, bias: bool) -> dict[str, int]:
        """Few rows gain by weights that keep what unpacking adds; f16 would lose bits by it."""
        raw = self.rows <= 4 and w.offsets > 0 and not half
        return {
            "ROWS": self.rows, "STRIPS": self.strips, "WARPS": self.warps, "ACROSS": self.across,
            "DEPTH": self.depth, "GROUP": w.group, "OFFSETS": w.offsets, "WIDE": int(w.wide),
            "SCALED": int(self.scaled), "RAW": int(raw), "HALF": int(half), "BIAS": int(bias),
        }  # fmt: skip


def cuts(columns: int) -> list[tuple[int, Cut]]:
    """(up to so many rows of x, the cut). The best of those tried on one H200 for the shapes of
    Llama-3-8B, up to 32 rows; beyond (estimated). A program for each of the 132 multiprocessors
    comes first, then taller ones, which read x less often."""
    strips = columns // STRIP
    if strips <= 256:
        row, eight, sixteen = (1, 16, 2), (2, 16, 2), (2, 16, 2)
        many, most = Cut(32, 2, 8, 2), Cut(64, 2, 8, 2, 2, True)
    elif strips <= 512:
        row, eight, sixteen = (1, 8, 4), (2, 8, 2), (4, 8, 2)
        many, most = Cut(32, 4, 8, 1), Cut(64, 2, 8, 2, 2, True)
    else:
        row, eight, sixteen = (1, 8, 4), (2, 8, 2), (4, 4, 2)
        many, most = Cut(32, 4, 8, 1), Cut(64, 2, 8, 2, 4, True)
    chosen = [(1, Cut(1, *row)), (4, Cut(4, *row)), (8, Cut(8, *eight)), (16, Cut(16, *sixteen))]
    chosen += [(32, many), (MOST, most)]
    return [(rows, _dividing(cut, strips)) for rows, cut in chosen]


def _dividing(cut: Cut, strips: int) -> Cut:
    """The cut with fewer strips a program where theirs do not divide all."""
    while strips % (cut.across * cut.strips):
        if cut.across > 1:
            cut = replace(cut, across=cut.across // 2, warps=cut.warps // 2)
        else:
            cut = replace(cut, strips=cut.strips // 2)
    return cut


class Kernels:
    """Those of one device, compiled when first asked for."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._modules: dict[tuple[str, tuple[int, ...]], Module] = {}

    def modules(self, device: Device, wanted: Sequence[dict[str, int]]) -> list[Module]:
        place, arch = device.info.torch_device, device.info.arch
        keys = [(place, tuple(options.values())) for options in wanted]
        missing = {k: o for k, o in zip(keys, wanted, strict=True) if k not in self._modules}

        def made(options: dict[str, int]) -> bytes:
            return self._compiler.cubin(SOURCE, options, arch)

        if missing:
            with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1)) as pool:
                for found, cubin in zip(missing, pool.map(made, missing.values()), strict=True):
                    self._modules[found] = Module(cubin, place)
        return [self._modules[found] for found in keys]


@dataclass(frozen=True, slots=True)
class Ready:
    """Weights and the kernels that read them."""

    weights: Weights
    few: list[tuple[int, Cut, Kernel]]
    dense: Kernel


class Product:
    """x @ W.T + bias"""

    def __init__(
        self, spec: LinearSpec | LogitsSpec, columns: int, width: int, kernels: Kernels,
        ctx: BuildContext,
    ):  # fmt: skip
        self._kernels, self._device = kernels, ctx.device
        self._half = spec.dtype == "float16"
        self._bias = isinstance(spec, LinearSpec) and spec.bias
        self._cuts = cuts(columns)
        self._steps = width // STEP
        self._part = max(STRIP, min(columns, PART_BYTES // (2 * width) // STRIP * STRIP))
        self._bytes = 2 * self._part * width
        self._device.workspace(KEY, self._bytes)

    def prepack(self, weight: QuantizedWeight) -> Ready:
        w = pack(weight)
        wanted = [cut.options(w, self._half, self._bias) for _, cut in self._cuts]
        modules = self._kernels.modules(self._device, wanted)
        few = [
            (rows, cut, module.kernel("int4_few", cut.threads, cut.shared_bytes, overlapped=True))
            for (rows, cut), module in zip(self._cuts, modules, strict=True)
        ]
        last = self._cuts[-1][1]  # not RAW
        return Ready(w, few, modules[-1].kernel("int4_dense", last.threads))

    def __call__(self, x: "Tensor", ready: Ready, bias: "Tensor | None") -> "Tensor":
        y = x.new_empty((x.shape[0], ready.weights.words.shape[0] * STRIP))
        self.write(x.contiguous(), ready, bias, y)
        return y

    def write(self, x: "Tensor", ready: Ready, bias: "Tensor | None", y: "Tensor") -> None:
        """The product of an x that is contiguous."""
        w, (rows, columns) = ready.weights, y.shape
        if rows > MOST:
            self._by_library(x, ready, bias, y)
            return
        for most, cut, kernel in ready.few if rows else ():
            if rows <= most:
                grid = (columns // cut.columns, -(-rows // cut.rows))
                kernel(grid, (x, w.words, w.scales, bias, y, rows, columns, self._steps))
                break

    def _by_library(self, x: "Tensor", ready: Ready, bias: "Tensor | None", y: "Tensor") -> None:
        import torch

        w, columns, width = ready.weights, y.shape[1], x.shape[1]
        held = self._device.workspace(KEY, self._bytes)[: self._bytes].view(x.dtype)
        for first in range(0, columns, self._part):
            last = min(first + self._part, columns)
            part = held[: (last - first) * width].view(last - first, width)
            grid = ((last - first) // STRIP, 1)
            ready.dense(grid, (w.words, w.scales, part, first // STRIP, self._steps))
            torch.mm(x, part.T, out=y[:, first:last])
        if bias is not None:
            y.add_(bias)


def _supports(
    spec: LinearSpec | LogitsSpec, device: Device, compiler: Compiler, columns: int, width: int
) -> Support | Reject:
    scheme = spec.scheme
    if scheme is None:
        return Reject("feature", "dense weights are cuda.cublas's")
    if scheme.weight != "int4" or scheme.activation or scheme.rows != 1:
        return Reject("feature", f"not INT4 alone: {describe(scheme)}")
    if spec.dtype not in ("bfloat16", "float16"):
        return Reject("dtype", f"{spec.dtype} is not bfloat16 or float16")
    if width % STEP or columns % STRIP:
        return Reject("shape", f"{columns} x {width} is not a multiple of {STRIP} x {STEP}")
    if (scheme.group or width) not in (*GROUPS, width):
        return Reject(
            "shape", f"groups of {scheme.group} input features are not of {GROUPS} or all"
        )
    arch = device.info.arch
    if arch != MEASURED:
        return Reject("hardware", f"measured on {MEASURED} only, not on {arch or 'this GPU'}")
    wrong = compiler.problem(arch)
    if wrong:
        return Reject("library", wrong)
    notes = f"own kernels up to {MOST} rows; {describe(scheme)}"
    return Support(priority=65, invariance="run", notes=notes)


class Linear:
    name = "cuda.int4"

    def __init__(self, compiler: Compiler, kernels: Kernels) -> None:
        self._compiler, self._kernels = compiler, kernels

    def supports(self, spec: LinearSpec, device: Device) -> Support | Reject:
        return _supports(spec, device, self._compiler, spec.out_features, spec.in_features)

    def build(self, spec: LinearSpec, ctx: BuildContext) -> Bound:
        product = Product(spec, spec.out_features, spec.in_features, self._kernels, ctx)

        def prepack(weight: QuantizedWeight, bias: "Tensor | None" = None) -> Any:
            return product.prepack(weight), bias

        def run(x: "Tensor", packed: Any) -> "Tensor":
            return product(x, packed[0], packed[1])

        return Bound(run=run, prepack=prepack)


class Logits:
    name = "cuda.int4"

    def __init__(self, compiler: Compiler, kernels: Kernels) -> None:
        self._compiler, self._kernels = compiler, kernels

    def supports(self, spec: LogitsSpec, device: Device) -> Support | Reject:
        return _supports(spec, device, self._compiler, spec.vocab, spec.dim)

    def build(self, spec: LogitsSpec, ctx: BuildContext) -> Bound:
        product = Product(spec, spec.vocab, spec.dim, self._kernels, ctx)

        def run(hidden: "Tensor", weight: Ready) -> "Tensor":
            out = product(hidden, weight, None).float()
            return spec.softcap * (out / spec.softcap).tanh() if spec.softcap else out

        return Bound(run=run, prepack=product.prepack)
