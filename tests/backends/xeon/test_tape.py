"""The native tape: recording computes nothing, replays give torch's results and eager bits."""

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from inferplane.checkpoint.source import ModelSource
from tests.models.families import VOCAB, gemma3, llama
from tests.models.oracle import make
from tests.models.serving import Served, ask, random_prompt, serve

pytest.importorskip("inferplane_xeon._kernels", reason="the kernels are not built")
from inferplane_xeon.tape import Arena, TapeGraph, Tapes

ANY: Any = None  # replays on the CPU need nothing of the batch


def integers(draw: random.Random, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    count = torch.Size(shape).numel()
    values = [draw.randint(-50, 50) for _ in range(count)]
    return torch.tensor(values, dtype=dtype).view(shape)


def indices(draw: random.Random, count: int, below: int, dtype: torch.dtype) -> Tensor:
    return torch.tensor([draw.randrange(below) for _ in range(count)], dtype=dtype)


def cases(draw: random.Random) -> list[Callable[[], Tensor]]:
    """Operations of a step on random operands; each gives a new tensor."""
    rows, width, count = draw.randint(1, 9), draw.randint(2, 7), draw.randint(1, 12)
    kind = draw.choice([torch.int32, torch.int64])
    table, wide = integers(draw, rows, width), integers(draw, rows, width, 3)
    floats = torch.randn(rows, width).bfloat16()
    at, column = indices(draw, count, rows, kind), indices(draw, count, width, kind)
    a, b = integers(draw, count), integers(draw, count)
    divisor = draw.choice([-7, -1, 1, 3, 16])
    chosen = draw.randrange(count)
    return [
        lambda: table.index_select(0, at),
        lambda: wide[:, 1:].index_select(0, at),
        lambda: floats.index_select(0, at),
        lambda: table[(at.long(), column.long())],
        lambda: wide[at.long()],
        lambda: table[:, 1].contiguous(),
        lambda: table.t().contiguous(),
        lambda: wide.permute(2, 0, 1).contiguous(),
        lambda: a.long(),
        lambda: a.long().int(),
        lambda: a + b,
        lambda: a[:1] - b,
        lambda: a * divisor,
        lambda: a - 3,
        lambda: a.div(divisor, rounding_mode="floor"),
        lambda: torch.where(a == chosen, b, a),
        lambda: torch.where(a < b, a, b),
        lambda: a.clone().index_put_((torch.arange(count),), b),
        lambda: table.clone().index_put_((at[:1].long(), column[:1].long()), a[:1]),
        lambda: torch.zeros(count, 3, dtype=torch.int32).copy_(a.unsqueeze(1)),
        # and what only torch computes
        lambda: table.float().softmax(-1),
        lambda: (table.float() * 0.5).sum(-1).long(),
        lambda: table.sort(dim=-1).values,
        lambda: torch.mul(table.float(), 2, out=torch.zeros(rows, width)),
        lambda: torch.cat([table, table + 1]),
        lambda: a.div(divisor, rounding_mode="trunc"),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_operations_are_those_of_torch(seed: int) -> None:
    draw, tapes = random.Random(seed), Tapes()
    for number, operation in enumerate(cases(draw)):
        with torch.inference_mode():
            want = operation()
            got = tapes.capture(operation).replay(ANY)
        assert got.dtype == want.dtype and torch.equal(got, want), f"operation {number}"


def test_operations_of_a_step_are_native() -> None:
    draw, tapes = random.Random(5), Tapes()
    native = cases(draw)[:17]
    with torch.inference_mode():
        for number, operation in enumerate(native):
            graph = tapes.capture(operation)
            assert isinstance(graph, TapeGraph)
            assert len(graph.parts) == 1, f"operation {number} is called through torch"


def test_recording_has_no_effect_and_replays_see_new_values() -> None:
    source, target = torch.arange(6, dtype=torch.int32), torch.zeros(6, dtype=torch.int32)
    slot = torch.tensor([1, 3])

    def step() -> Tensor:
        target.index_put_((slot,), source[slot.int()] + 100)
        target.float().mul_(2)
        return target.index_select(0, slot)

    with torch.inference_mode():
        graph = Tapes().capture(step)
        assert target.tolist() == [0] * 6
        first = graph.replay(ANY)
        assert first.tolist() == [101, 103]
        source += 10
        slot.copy_(torch.tensor([0, 5]))
        assert graph.replay(ANY) is first
    assert first.tolist() == [110, 115]
    assert target.tolist() == [110, 101, 0, 103, 0, 115]


def test_memory_of_the_dead_serves_the_next() -> None:
    tapes = Tapes()
    data = torch.arange(40_000, dtype=torch.int32)

    def chain() -> Tensor:
        x = data
        for _ in range(20):
            x = x + 1
        return x

    with torch.inference_mode():
        first = tapes.capture(chain)
        held = tapes.arena_bytes()
        assert held < 4 * data.nbytes * 1.3
        second = tapes.capture(chain)
        assert tapes.arena_bytes() < held + 1.3 * data.nbytes  # the second result
        mine = first.replay(ANY)
        other = second.replay(ANY)
    assert mine.data_ptr() != other.data_ptr()
    assert torch.equal(other, data + 20)


def test_arena_memory_is_aligned_and_returns() -> None:
    arena = Arena()
    for size in (1, 3, 100, 1000):
        x = arena.empty((size,), torch.bfloat16)
        assert x.data_ptr() % 64 == 0 and x.shape == (size,)
    before = arena.bytes
    for _ in range(10):
        x = arena.empty((1000,), torch.bfloat16)
    assert arena.bytes <= before + 4096
    assert arena.empty((0, 5), torch.int32).shape == (0, 5)


def test_what_cannot_be_recorded(library: ModuleType) -> None:
    tapes, x = Tapes(), torch.arange(4)
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match=r"item|host|meta"):
            tapes.capture(lambda: x.sum().item())
        assert tapes.capture(lambda: x.int() + 1).replay(ANY).tolist() == [1, 2, 3, 4]
    library.record()
    with pytest.raises(RuntimeError, match="recording already"):
        library.record()
    library.recorded()
    with pytest.raises(RuntimeError, match="records nothing"):
        library.recorded()


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def source(request: pytest.FixtureRequest, tmp_path_factory: Any) -> ModelSource:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    model = {"llama": llama, "gemma3": gemma3}[request.param](**sizes)
    return make(tmp_path_factory.mktemp(request.param), model)[1]


def answers(source: ModelSource, **settings: Any) -> tuple[Served, dict[str, Any]]:
    served = serve(source, device="xeon", dtype="bfloat16", page_size=16, **settings)
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 1.0},
        {"repetition_penalty": 1.2},
        {"logit_bias": {3: 2.0}, "min_tokens": 4},
    ]
    requests = [
        ask(f"r{i}", random_prompt(5 + 7 * i, VOCAB, i), 6 + i, seed=i, logprobs=2, **kind)
        for i, kind in enumerate(kinds)
    ]
    got = served.run(requests)
    return served, {
        name: (a.tokens, [(s.token, s.logprob, s.rank, s.top) for s in a.logprobs])
        for name, a in got.items()
    }


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_replayed_steps_have_the_bits_of_eager_ones(source: ModelSource, quantization: str) -> None:
    _, eager = answers(source, quantization=quantization, disable_graphs=True)
    served, replayed = answers(source, quantization=quantization)
    assert served.engine.loaded.runner.graphs is not None
    assert replayed == eager


def test_a_decode_step_is_native_throughout(source: ModelSource) -> None:
    """No call of torch's is left between the tapes of a common step."""
    served, _ = answers(source)
    runner = served.engine.loaded.runner
    recordings = runner._recordings
    assert recordings is not None
    for known in recordings._recorded.values():
        for graph in (known.derive, known.forward):
            assert isinstance(graph, TapeGraph) and len(graph.parts) == 1
    common = [
        r.graph
        for (_, c), r in runner._sampler._recorded.items()
        if c.top < 0 and not (c.bias or c.penalties)
    ]
    plain = [graph for graph in common if isinstance(graph, TapeGraph)]
    assert plain and {len(graph.parts) for graph in plain} == {1}
