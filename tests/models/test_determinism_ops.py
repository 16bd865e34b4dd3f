"""The reference ops in batch mode: a row has the same bits alone, among others, and in any place,
with every number of threads."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from inferplane.hw import Bound, DeviceInfo, TorchDevice
from inferplane.hw.ops import TABLE
from inferplane.hw.ops.activation import GluSpec
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane.hw.ops.norm import RMSNormSpec
from inferplane.hw.ops.sampling import SamplingSpec

ROWS = 131
Run = Callable[..., Any]


class Context:
    device = TorchDevice(DeviceInfo(backend="plain", torch_device="cpu", name="plain torch"))

    def bind(self, op: str, spec: Any) -> Bound:
        return TABLE[op].reference.build(spec, self)  # type: ignore[arg-type]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def random(*shape: int, dtype: str = "float32") -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return made.to(getattr(torch, dtype))


def case(name: str, dtype: str, determinism: Any) -> tuple[Run, list[torch.Tensor]]:
    """run and its per-row arguments; sizes that no vector width divides"""
    both: dict[str, Any] = {"dtype": dtype, "determinism": determinism}
    weight = random(307, 211, dtype=dtype)
    bind = Context().bind
    if name == "silu":
        return bind("activation.glu", GluSpec(size=1531, **both)).run, [random(ROWS, 3062)]
    if name == "gelu":
        spec = GluSpec(size=1531, activation="gelu_tanh", **both)
        return bind("activation.glu", spec).run, [random(ROWS, 3062)]
    if name == "norm":
        norm = bind("norm.rms", RMSNormSpec(dim=211, epsilon=1e-6, **both)).run
        return lambda x: norm(x, weight[0]), [random(ROWS, 211)]
    if name == "head norm":
        norm = bind("norm.rms", RMSNormSpec(dim=24, epsilon=1e-6, **both)).run
        return lambda x: norm(x[:, :9], weight[0, :24]), [random(ROWS, 13, 24)]
    if name == "linear":
        linear = bind("linear", LinearSpec(in_features=211, out_features=307, **both)).run
        return lambda x: linear(x, (weight, None)), [random(ROWS, 211)]
    if name == "logits":
        logits = bind("logits", LogitsSpec(dim=211, vocab=307, softcap=5.0, **both)).run
        return lambda x: logits(x, weight), [random(ROWS, 211)]
    return bind("sampling.logprobs", SamplingSpec(vocab=4999, determinism=determinism)).run, [
        random(ROWS, 4999),
        torch.arange(ROWS, dtype=torch.int32),
    ]


def differing(name: str, dtype: str, determinism: Any) -> int:
    run, rows = case(name, dtype, determinism)
    more: list[Any] = [3] if name == "logprobs" else []
    if not more:
        rows = [x.to(getattr(torch, dtype)) for x in rows]

    def call(first: int, end: int) -> tuple[torch.Tensor, ...]:
        out = run(*(x[first:end] for x in rows), *more)
        return out if isinstance(out, tuple) else (out,)

    whole, count = call(0, ROWS), 0
    for first, end in ((0, 1), (0, 2), (5, 6), (3, ROWS), (1, ROWS - 1), (7, 71), (ROWS - 1, ROWS)):
        for all_rows, part in zip(whole, call(first, end), strict=True):
            count += int((all_rows[first:end] != part).sum())
    return count


NAMES = ["silu", "gelu", "norm", "head norm", "linear", "logits", "logprobs"]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_depend_on_each_other(name: str, dtype: str) -> None:
    assert differing(name, dtype, "batch") == 0


def test_control_without_the_mode_they_do() -> None:
    torch.set_num_threads(3)
    found = {name for name in NAMES if differing(name, "float32", "run")}
    torch.set_num_threads(1)
    assert {"linear", "logits"} <= found and found & {"silu", "gelu"}
