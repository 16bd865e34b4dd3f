"""linear and logits over dense weights: own kernels for the few rows of a decode step, the library
for the rest; and a product whose rows have the same bits in every batch.

In the first, which one runs depends on the number of rows, so the same row may have other bits in
another batch.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.op import describe
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane_triton import launch, tuning
from inferplane_triton.attention import core_count, overlapped
from inferplane_triton.launch import Scratch, Tile
from inferplane_triton.shared_memory import Operands, fitting

if TYPE_CHECKING:
    from torch import Tensor

FEW_ROWS = 32
"""the library is as fast or faster from here on"""
TILE = 64
KEY = "triton.parts"
DENSE = Operands(w=2, x=2)


class Product(Protocol):
    def __call__(
        self, x: "Tensor", weight: "Tensor", bias: "Tensor | None", out: "Tensor | None" = None
    ) -> "Tensor":
        """x[T, K] @ weight[N, K].T + bias; `out`: float32, gets the values that else are in x's
        type"""


def _supports(spec: LinearSpec | LogitsSpec, in_features: int, columns: int = 0) -> Reject | None:
    """`columns`: of kernels that take multiples of TILE alone"""
    if spec.dtype not in ("bfloat16", "float16"):
        return Reject("dtype", f"{spec.dtype} is not bfloat16 or float16")
    if spec.scheme:
        return Reject("feature", f"no kernel for {describe(spec.scheme)}")
    if in_features % 128:
        return Reject("shape", f"{in_features} input features are not a multiple of 128")
    if columns % TILE:
        return Reject("shape", f"{columns} output features are not a multiple of {TILE}")
    return None


def scratch_for(
    cuts: list[tuple[int, Tile]], columns: int, ctx: BuildContext
) -> Callable[[], Scratch]:
    """Memory of a split product that has (at most so many rows of x, this tile): parts are shared
    by all products of the device, which run one after the other (kernels/tiles.py on PDL);
    counters are zero between them and belong to one product."""
    import torch

    cuts = [(rows, cut) for rows, cut in cuts if cut.split > 1]
    if not cuts:
        return Scratch
    needed = max(cut.part_bytes(rows, columns) for rows, cut in cuts)
    tiles = max(-(-columns // cut.rows) * -(-rows // cut.m_pad(rows)) for rows, cut in cuts)
    count = torch.zeros(tiles, dtype=torch.int32, device=ctx.device.info.torch_device)
    ctx.device.workspace(KEY, needed)
    return lambda: Scratch(ctx.device.workspace(KEY, needed).view(torch.float32), count)


def own_or_library(columns: int, width: int, ctx: BuildContext) -> Product:
    """x[T, K] @ weight[N, K].T + bias"""
    from torch.nn.functional import linear

    pdl = bool(overlapped(ctx.device)["PDL"])
    shape = columns, width, core_count(ctx.device), False, pdl
    row, several = tuning.dense_row(*shape), tuning.dense_several(*shape)
    few = fitting(DENSE, ctx.device)(tuning.dense_few(columns, width, pdl), FEW_ROWS)
    scratch = scratch_for([(FEW_ROWS, few)], columns, ctx)

    def product(
        x: "Tensor", weight: "Tensor", bias: "Tensor | None", out: "Tensor | None" = None
    ) -> "Tensor":
        rows = x.shape[0]
        if not 0 < rows <= FEW_ROWS or not x.is_contiguous():
            made = linear(x, weight, bias)
            return made if out is None else out.copy_(made)
        y = x.new_empty((rows, columns)) if out is None else out
        if line := launch.line(rows, row, several):
            launch.dense_rows(x, weight, bias, y, line)
        else:
            launch.dense_tiles(x, weight, bias, y, few, scratch())
        return y

    return product


def invariant(columns: int, width: int, ctx: BuildContext) -> Product:
    """x[T, K] @ weight[N, K].T + bias; the bits of a row do not depend on the others"""
    pdl = bool(overlapped(ctx.device)["PDL"])
    fit = fitting(DENSE, ctx.device)
    few = fit(tuning.invariant(tuning.FEW, columns, width, pdl), tuning.FEW)
    many = tuning.invariant(tuning.FEW + 1, columns, width, pdl)
    many = fit(many, many.most)
    scratch = scratch_for([(tuning.FEW, few)], columns, ctx)

    def product(
        x: "Tensor", weight: "Tensor", bias: "Tensor | None", out: "Tensor | None" = None
    ) -> "Tensor":
        x = x.contiguous()
        y = x.new_empty((x.shape[0], columns)) if out is None else out
        if x.shape[0]:
            cut = few if x.shape[0] <= tuning.FEW else many
            launch.dense_tiles(x, weight, bias, y, cut, scratch())
        return y

    return product


def finished(out: "Tensor", softcap: float) -> "Tensor":
    out = out.float()
    return softcap * (out / softcap).tanh() if softcap else out


def _linear(spec: LinearSpec, product: Product) -> Bound:
    def prepack(weight: "Tensor", bias: "Tensor | None" = None) -> Any:
        return weight.contiguous(), bias

    def run(x: "Tensor", packed: Any) -> "Tensor":
        return product(x, packed[0], packed[1])

    return Bound(run=run, prepack=prepack)


def _logits(spec: LogitsSpec, product: Product) -> Bound:
    def run(hidden: "Tensor", weight: "Tensor") -> "Tensor":
        return finished(product(hidden, weight, None), spec.softcap)

    def into(hidden: "Tensor", weight: "Tensor", out: "Tensor") -> None:
        if spec.softcap:
            out.copy_(run(hidden, weight))
        else:
            product(hidden, weight, None, out)

    return Bound(run=run, into=into, prepack=lambda weight: weight.contiguous())


class Linear:
    name = "triton.linear"

    def supports(self, spec: LinearSpec, device: Device) -> Support | Reject:
        wrong = _supports(spec, spec.in_features, spec.out_features)
        notes = f"own kernels up to {FEW_ROWS} rows"
        return wrong or Support(priority=60, invariance="run", notes=notes)

    def build(self, spec: LinearSpec, ctx: BuildContext) -> Bound:
        return _linear(spec, own_or_library(spec.out_features, spec.in_features, ctx))


class Logits:
    name = "triton.linear"

    def supports(self, spec: LogitsSpec, device: Device) -> Support | Reject:
        wrong = _supports(spec, spec.dim, spec.vocab)
        notes = f"own kernels up to {FEW_ROWS} rows"
        return wrong or Support(priority=60, invariance="run", notes=notes)

    def build(self, spec: LogitsSpec, ctx: BuildContext) -> Bound:
        return _logits(spec, own_or_library(spec.vocab, spec.dim, ctx))


def _is_hopper(device: Device) -> Reject | None:
    """Elsewhere Triton chooses its matrix instruction by the tile, which changes with the rows."""
    if device.info.arch == "sm_90":
        return None
    return Reject("hardware", f"{device.info.arch or device.info.name} is not sm_90")


class InvariantLinear:
    name = "triton.linear_invariant"

    def supports(self, spec: LinearSpec, device: Device) -> Support | Reject:
        wrong = _supports(spec, spec.in_features) or _is_hopper(device)
        return wrong or Support(priority=55, invariance="batch", notes="one order of sums")

    def build(self, spec: LinearSpec, ctx: BuildContext) -> Bound:
        return _linear(spec, invariant(spec.out_features, spec.in_features, ctx))


class InvariantLogits:
    name = "triton.linear_invariant"

    def supports(self, spec: LogitsSpec, device: Device) -> Support | Reject:
        wrong = _supports(spec, spec.dim) or _is_hopper(device)
        return wrong or Support(priority=55, invariance="batch", notes="one order of sums")

    def build(self, spec: LogitsSpec, ctx: BuildContext) -> Bound:
        product = invariant(spec.vocab, spec.dim, ctx)
        return _logits(spec, product)
