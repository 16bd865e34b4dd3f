"""INT4 by the CUDA kernels of our own as a candidate of linears.py."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from linear_variants import Inputs, Problem, Run

from inferplane.hw import Reject
from inferplane.hw.ops.linear import LinearSpec
from inferplane.hw.quantization import QuantizedWeight
from inferplane.plugins import Plugins, open_device
from inferplane.testing.op_run import OneOp
from inferplane_cuda.int4 import Kernels, Linear, Product, Ready

NAME = Linear.name


def candidates(p: Problem, i: Inputs) -> Iterator[tuple[str, Run]]:
    """The op as engines run it. Its packing is not that of the other kernels: it is made, and the
    kernels are compiled, by the first launch, whose errors are printed."""
    if p.quantized is None:
        return
    made: list[tuple[Product, list[Ready]]] = []

    def run(c: int) -> None:
        if not made:
            made.append(_make(p.quantized, p.device, len(p.weights)))
        product, copies = made[0]
        product.write(i.x, copies[c], None, i.y)

    yield NAME, run


@cache
def opened(name: str) -> tuple[Any, Kernels]:
    """One for all cases, so that each kernel is compiled once."""
    device: Any = open_device(Plugins(), name)[0]
    return device, Kernels(device.compiler)


def _make(weight: QuantizedWeight, name: str, count: int) -> tuple[Product, list[Ready]]:
    device, kernels = opened(name)
    columns, width = weight.out_features, weight.in_features
    spec = LinearSpec(
        in_features=width, out_features=columns, dtype="bfloat16", scheme=weight.scheme
    )
    found = Linear(device.compiler, kernels).supports(spec, device)
    if isinstance(found, Reject):
        raise RuntimeError(found.reason)
    product = Product(spec, columns, width, kernels, OneOp(device))
    ready = product.prepack(weight)
    w = ready.weights
    return product, [
        replace(ready, weights=replace(w, words=w.words.clone(), scales=w.scales.clone()))
        for _ in range(count)
    ]
