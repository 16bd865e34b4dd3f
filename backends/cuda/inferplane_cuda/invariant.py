"""Batch-invariant dense products by cuBLASLt.

cuBLASLt chooses its kernel by the number of rows. Kernels that split K among programs need a
workspace; without one, all that are left add the products of a row in the same order, whatever the
number of rows (seen on H100 with cuBLAS 13.1 in bf16 for each weight of Llama-3-8B and Qwen3-0.6B).
Nothing promises that, so each weight shape is tried when the first weight of it is loaded: the same
rows in batches from 1 to 4,096, and from the middle of such a batch, must have the same bits.

It chooses by the alignment of what it reads and writes, too: rows of an odd number of values begin
at other alignments in another place of a batch, and their bits were seen to differ. So both sides
of a weight must be multiples of ALIGNED; other shapes are for kernels with one order of sums.
"""

import os
from itertools import product
from typing import TYPE_CHECKING, Any

from inferplane.errors import DeviceError
from inferplane.hw import Bound, BuildContext, Device, Reject, Support
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec

if TYPE_CHECKING:
    from torch import Tensor

ENVIRONMENT = {"CUBLASLT_WORKSPACE_SIZE": "1", "CUBLAS_WORKSPACE_CONFIG": ":16:8"}
"""read by torch when it first uses the library in a process"""
TRIED = (1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 64, 65, 100, 128, 200, 256, 300, 512, 1000, 1024, 2048)
STARTS = (1, 22, 40)
"""rows that a slice of the batch that is tried begins with, besides the first"""
ALIGNED = 64
"""values: 128 bytes, no copy or matrix unit asks for more, and the width of the narrowest tile,
so that none is cut off by the end of a side"""
MOST_ROWS = 4096
MOST_ELEMENTS = 2**28
"""of a product that is tried: the head of a large vocabulary is tried with fewer rows"""

_proven: set[tuple[int, int, str]] = set()


def prepare() -> None:
    """Before anything in this process multiplies on the device."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    torch.backends.cuda.preferred_blas_library("cublaslt")


def prove(op: str, weight: "Tensor") -> None:
    """DeviceError if a row's bits depend on the batch for weights [N, K] of this shape and type."""
    import torch
    from torch.nn.functional import linear

    key = (*weight.shape, str(weight.dtype))
    if key in _proven:
        return
    columns, width = weight.shape
    most = min(MOST_ROWS, MOST_ELEMENTS // columns)
    generator = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(most, width, generator=generator, device=weight.device).to(weight.dtype)
    whole = linear(x, weight)
    for first, rows in product((0, *STARTS), TRIED):
        part = slice(first, first + rows)
        if part.stop < most and not torch.equal(linear(x[part], weight), whole[part]):
            raise DeviceError(
                f"cuBLASLt is not batch-invariant for weights {columns} x {width}: {rows} rows from"
                f" row {first} on have other bits than in {most}. Use"
                f" --op {op}=triton.linear_invariant, or start with"
                f" {' '.join('='.join(item) for item in ENVIRONMENT.items())} in the environment"
            )
    _proven.add(key)


def _supports(
    spec: LinearSpec | LogitsSpec, device: Device, columns: int, width: int
) -> Support | Reject:
    if spec.determinism != "batch":
        return Reject("determinism", "for deterministic mode alone: it may not split K")
    if spec.dtype not in ("bfloat16", "float16"):
        return Reject("dtype", f"{spec.dtype} is not bfloat16 or float16")
    if spec.scheme is not None:
        return Reject("feature", "quantized weights")
    if columns % ALIGNED or width % ALIGNED:
        return Reject("shape", f"{columns} x {width} are not multiples of {ALIGNED}")
    if device.info.arch != "sm_90":
        return Reject("hardware", f"proven on sm_90 only, not on {device.info.arch or 'this GPU'}")
    return Support(priority=70, invariance="batch", notes="without split-K; proven when loaded")


class Linear:
    name = "cuda.cublaslt"

    def supports(self, spec: LinearSpec, device: Device) -> Support | Reject:
        return _supports(spec, device, spec.out_features, spec.in_features)

    def build(self, spec: LinearSpec, ctx: BuildContext) -> Bound:
        from torch.nn.functional import linear

        def prepack(weight: "Tensor", bias: "Tensor | None" = None) -> Any:
            prove("linear", weight)
            return weight, bias

        def run(x: "Tensor", packed: Any) -> "Tensor":
            return linear(x, packed[0], packed[1])

        return Bound(run=run, prepack=prepack)


class Logits:
    name = "cuda.cublaslt"

    def supports(self, spec: LogitsSpec, device: Device) -> Support | Reject:
        return _supports(spec, device, spec.vocab, spec.dim)

    def build(self, spec: LogitsSpec, ctx: BuildContext) -> Bound:
        from torch.nn.functional import linear

        def prepack(weight: "Tensor") -> "Tensor":
            prove("logits", weight)
            return weight

        def run(hidden: "Tensor", weight: "Tensor") -> "Tensor":
            out = linear(hidden, weight).float()
            return spec.softcap * (out / spec.softcap).tanh() if spec.softcap else out

        def into(hidden: "Tensor", weight: "Tensor", out: "Tensor") -> None:
            out.copy_(run(hidden, weight) if spec.softcap else linear(hidden, weight))

        return Bound(run=run, into=into, prepack=prepack)
