"""Dense products through torch, which calls cuBLAS."""

from typing import TYPE_CHECKING, Any

from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.op import describe
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("bfloat16", "float16", "float32")


def _supports(spec: LinearSpec | LogitsSpec) -> Support | Reject:
    if spec.dtype not in DTYPES:
        return Reject("dtype", f"{spec.dtype} is not one of {DTYPES}")
    if spec.scheme:
        return Reject("feature", f"no kernel for {describe(spec.scheme)}")
    return Support(priority=50, invariance="run", notes="the kernel depends on the number of rows")


class Linear:
    name = "cuda.cublas"

    def supports(self, spec: LinearSpec, device: Device) -> Support | Reject:
        return _supports(spec)

    def build(self, spec: LinearSpec, ctx: BuildContext) -> Bound:
        from torch.nn.functional import linear

        def prepack(weight: "Tensor", bias: "Tensor | None" = None) -> Any:
            return weight, bias

        def run(x: "Tensor", packed: Any) -> "Tensor":
            return linear(x, packed[0], packed[1])

        return Bound(run=run, prepack=prepack)


class Logits:
    name = "cuda.cublas"

    def supports(self, spec: LogitsSpec, device: Device) -> Support | Reject:
        return _supports(spec)

    def build(self, spec: LogitsSpec, ctx: BuildContext) -> Bound:
        from torch.nn.functional import linear

        def run(hidden: "Tensor", weight: "Tensor") -> "Tensor":
            out = linear(hidden, weight).float()
            return spec.softcap * (out / spec.softcap).tanh() if spec.softcap else out

        def into(hidden: "Tensor", weight: "Tensor", out: "Tensor") -> None:
            out.copy_(run(hidden, weight) if spec.softcap else linear(hidden, weight))

        return Bound(run=run, into=into, prepack=lambda weight: weight)
