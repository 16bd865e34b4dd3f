"""linear and logits: own kernels for the few rows of a decode step, the library for the rest.

Which one runs depends on the number of rows, so the same row may have other bits in another batch.
"""

from typing import TYPE_CHECKING, Any

from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.op import describe
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane_triton.attention import next_power
from inferplane_triton.kernels import linear as kernels

if TYPE_CHECKING:
    from torch import Tensor

FEW_ROWS = 32
"""the library is as fast or faster from here on"""
WIDE = 4096
"""with fewer columns the matrix-unit kernel has too few programs to read at full speed"""
TILE = 64


def _supports(spec: LinearSpec | LogitsSpec, in_features: int, columns: int) -> Support | Reject:
    if spec.dtype not in ("bfloat16", "float16"):
        return Reject("dtype", f"{spec.dtype} is not bfloat16 or float16")
    if spec.scheme:
        return Reject("feature", f"no kernel for {describe(spec.scheme)}")
    if in_features % 128:
        return Reject("shape", f"{in_features} input features are not a multiple of 128")
    if columns % TILE:
        return Reject("shape", f"{columns} output features are not a multiple of {TILE}")
    return Support(priority=60, invariance="run", notes="own kernels up to 32 rows")


def product(x: "Tensor", weight: "Tensor", bias: "Tensor | None") -> "Tensor":
    """x[T, K] @ weight[N, K].T + bias"""
    from torch.nn.functional import linear

    rows, (columns, width) = x.shape[0], weight.shape
    few = 1 < rows <= FEW_ROWS and columns >= WIDE
    if not (rows == 1 or few) or not x.is_contiguous():
        return linear(x, weight, bias)
    out = x.new_empty((rows, columns))
    if rows == 1:
        block = next(b for b in (1024, 512, 256, 128) if width % b == 0)
        kernels.one_row[(columns,)](
            x, weight, bias, out, width, ROWS=1, BLOCK=block, BIAS=bias is not None, num_warps=4
        )
        return out
    kernels.few_rows[(columns // TILE,)](
        x, weight, bias, out, rows, columns, width, x.stride(0),
        M_PAD=max(16, next_power(rows)), ROWS=TILE, BLOCK=128, BIAS=bias is not None,
        num_warps=4, num_stages=5,
    )  # fmt: skip
    return out


class Linear:
    name = "triton.linear"

    def supports(self, spec: LinearSpec, device: Device) -> Support | Reject:
        return _supports(spec, spec.in_features, spec.out_features)

    def build(self, spec: LinearSpec, ctx: BuildContext) -> Bound:
        def prepack(weight: "Tensor", bias: "Tensor | None" = None) -> Any:
            return weight.contiguous(), bias

        def run(x: "Tensor", packed: Any) -> "Tensor":
            return product(x, packed[0], packed[1])

        return Bound(run=run, prepack=prepack)


class Logits:
    name = "triton.linear"

    def supports(self, spec: LogitsSpec, device: Device) -> Support | Reject:
        return _supports(spec, spec.dim, spec.vocab)

    def build(self, spec: LogitsSpec, ctx: BuildContext) -> Bound:
        def run(hidden: "Tensor", weight: "Tensor") -> "Tensor":
            out = product(hidden, weight, None).float()
            return spec.softcap * (out / spec.softcap).tanh() if spec.softcap else out

        return Bound(run=run, prepack=lambda weight: weight.contiguous())
