"""Every product of deterministic mode, with the implementation that is chosen here for it, in the
shapes of three real models: the bits of a row are the same whatever number of rows and wherever
among them it is."""

from functools import cache
from typing import Any

import pytest
import torch
from ci.bench.gpu.models import Shape

from inferplane.config import Config
from inferplane.hw import Bound, Device, OpImpl
from inferplane.plugins import Plugins
from inferplane.runner.dry import NoWeights, build_dry
from inferplane.runner.prepare import prepare
from inferplane.testing.op_run import OneOp

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

MODELS = {
    "accelerator": ("llama3-8b", "qwen3-8b", "qwen3-0.6b"),
    "other": ("smollm2-135m",),
}
ROWS, FEW = 4096, 512
"""the head serves FEW rows at most: those that are sampled, or a part of a prompt that is scored"""
PRODUCTS = ("linear", "linear.glu", "logits")
Product = tuple[str, Any, OpImpl]


@cache
def products(backend: str, model: str) -> tuple[Device, dict[str, Product]]:
    """The device, and (op, spec, implementation) by a name that tells the shape."""
    settings: dict[str, Any] = {"load_format": "dummy", "enable_deterministic_inference": True}
    source = Shape(model)
    config = Config(model=model, device=backend, dtype="bfloat16", **settings)
    prepared = prepare(config, source.config, Plugins())
    plan = build_dry(prepared, NoWeights("bfloat16", source, prepared))
    found = {}
    for decision in plan.resolver.decisions.values():
        if decision.op in PRODUCTS and decision.chosen.name != "reference":
            found[f"{decision.op} {shape(decision.spec)}"] = (
                decision.op,
                decision.spec,
                decision.chosen,
            )
    return prepared.device, found


def shape(spec: Any) -> tuple[int, int]:
    """Rows and columns of the weight [N, K]."""
    if hasattr(spec, "vocab"):
        return spec.vocab, spec.dim
    if hasattr(spec, "size"):
        return 2 * spec.size, spec.in_features
    return spec.out_features, spec.in_features


def run_of(device: Device, product: Product) -> Any:
    """x [M, K] -> [M, N] with a random weight"""
    op, spec, chosen = product
    where = device.info.torch_device
    generator = torch.Generator(where).manual_seed(1)
    weight = torch.empty(shape(spec), dtype=torch.bfloat16, device=where)
    weight.normal_(0.0, 0.05, generator=generator)
    bound = chosen.build(spec, OneOp(device))
    assert bound.prepack is not None
    packed = bound.prepack(weight, None) if op == "linear" else bound.prepack(weight)
    return lambda x: bound.run(x, packed)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32)


def differing(device: Device, product: Product, rows: int, counts: list[int]) -> list[int]:
    """The numbers of rows whose results differ from those rows of the whole. Each is taken from
    another place."""
    run, width = run_of(device, product), shape(product[1])[1]
    where = device.info.torch_device
    generator = torch.Generator(where).manual_seed(2)
    x = torch.randn(rows, width, generator=generator, device=where).to(torch.bfloat16)
    with torch.inference_mode():
        whole = bits(run(x))
        wrong = torch.zeros(len(counts), dtype=torch.bool, device=where)
        for index, count in enumerate(counts):
            first = count * 37 % (rows - count + 1)
            part = bits(run(x[first : first + count]))
            wrong[index] = (part != whole[first : first + count]).any()
    return [count for count, bad in zip(counts, wrong.tolist(), strict=True) if bad]


@pytest.mark.parametrize("number", range(3))
def test_rows_have_the_same_bits(backend: str, accelerated: bool, number: int) -> None:
    models = MODELS["accelerator" if accelerated else "other"]
    if number >= len(models):
        pytest.skip("only on an accelerator")
    device, found = products(backend, models[number])
    assert {op for op, _, _ in found.values()} >= {"logits"} and len(found) >= 4
    wrong = {}
    for name, product in found.items():
        rows = FEW if product[0] == "logits" else ROWS
        counts = list(range(1, rows + 1))
        if not accelerated:
            rows, counts = 200, [1, 2, 3, 8, 9, 64, 65, 130]
        wrong[f"{name} by {product[2].name}"] = differing(device, product, rows, counts)
        print(f"{models[number]}: {name} by {product[2].name}, {len(counts)} numbers of rows")
    assert not any(wrong.values()), {name: bad[:20] for name, bad in wrong.items() if bad}


class Split:
    """A product that adds as many parts of K as there are rows, at most 8."""

    name = "split"

    def build(self, spec: Any, ctx: Any) -> Bound:
        def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            count = min(8, len(x))
            parts = zip(x.chunk(count, 1), weight.chunk(count, 1), strict=True)
            return torch.stack([a.float() @ b.float().T for a, b in parts]).sum(0).to(x.dtype)

        return Bound(run=run, prepack=lambda weight, bias: weight)


def test_the_check_notices(backend: str, accelerated: bool) -> None:
    """The control: a product whose order of additions depends on the number of rows."""
    device, found = products(backend, MODELS["accelerator" if accelerated else "other"][0])
    spec = next(spec for op, spec, _ in found.values() if op == "linear")
    split: Any = Split()
    assert differing(device, ("linear", spec, split), 64, [1, 2, 4, 64]) == [1, 2, 4]
