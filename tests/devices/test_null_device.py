"""The null device and its recorder notice what they are there to notice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inferplane.errors import DeviceError
from inferplane.testing.null import NullBackend, NullDevice, NullSettings
from inferplane.testing.recording import CaptureError, RecordingGraphs

BATCH: Any = None


def device(**settings: Any) -> NullDevice:
    backend = NullBackend(NullSettings(**settings))
    (info,) = backend.probe()
    return backend.create_device(info, {})


def test_copies_to_the_host_come_late_and_in_order() -> None:
    null = device(asynchronous=True)
    first, second = null.host_buffer(3, "int32"), null.host_buffer(2, "float32")
    first.copy_(torch.tensor([1, 2, 3]), non_blocking=True)
    early = null.record()
    second.view(2, 1).copy_(torch.tensor([[0.5], [1.5]]), non_blocking=True)
    late = null.record()
    assert early is not None and late is not None
    assert first.tolist() == [-(2**31)] * 3
    assert not early.query()
    early.synchronize()
    assert first.tolist() == [1, 2, 3]
    assert early.query() and not late.query()
    assert second.isnan().all()
    null.synchronize()
    assert late.query()
    assert second.tolist() == [0.5, 1.5]


def test_a_late_copy_has_the_value_of_its_moment() -> None:
    null = device(asynchronous=True)
    target, source = null.host_buffer(1, "int32"), torch.tensor([4])
    target.copy_(source, non_blocking=True)
    source.fill_(5)
    null.synchronize()
    assert target.tolist() == [4]


def test_a_staging_buffer_must_not_change_under_way() -> None:
    null = device(asynchronous=True)
    staging = null.host_buffer(2, "int32")
    staging.numpy()[:] = [1, 2]
    torch.empty(2, dtype=torch.int32).copy_(staging, non_blocking=True)
    null.synchronize()
    staging.numpy()[:] = [3, 4]
    torch.empty(2, dtype=torch.int32).copy_(staging, non_blocking=True)
    staging.numpy()[:] = [5, 6]
    with pytest.raises(DeviceError, match="had yet to read"):
        null.synchronize()


def test_a_synchronous_device_has_no_events() -> None:
    null = device()
    assert null.record() is None
    target = null.host_buffer(1, "int32").copy_(torch.tensor([1]), non_blocking=True)
    assert target.tolist() == [1]


def record(fn: Callable[[], Any]) -> Any:
    with torch.inference_mode():
        return RecordingGraphs().capture(fn)


def replay(tape: Any) -> Any:
    with torch.inference_mode():
        return tape.replay(BATCH)


def test_recording_has_no_effect_and_replay_has() -> None:
    total, x = torch.zeros(4), torch.arange(4.0)

    def step() -> torch.Tensor:
        total[1:].add_(x[1:] * 2)
        y = torch.zeros(4)
        y[0] = 1.0
        y.add_(total.view(2, 2).flatten())
        return y.reshape(2, 2)

    tape = record(step)
    assert total.tolist() == [0.0] * 4
    result = replay(tape)
    assert result.tolist() == [[1, 2], [4, 6]]
    x.fill_(1.0)
    assert replay(tape) is result
    assert result.tolist() == [[1, 4], [6, 8]]
    assert total.tolist() == [0, 4, 6, 8]


def test_what_the_host_computed_is_frozen() -> None:
    x, steps = torch.zeros(1), [1]
    tape = record(lambda: x + steps[0] + torch.tensor([10.0 * steps[0]]))
    steps[0] = 2
    assert replay(tape).tolist() == [11.0]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: 1 if x[0] > 0 else 2,
        lambda x: range(x[0].int()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.index_put_((x > 0,), torch.ones(())),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: torch.repeat_interleave(x.int()),
        lambda x: float(x[0]),
    ],
)
def test_waiting_for_the_device_is_an_error_while_recording(fn: Any) -> None:
    x = torch.ones(3)
    with pytest.raises(CaptureError):
        record(lambda: fn(x))
    fn(x)


def test_replaced_state_goes_in_and_comes_out() -> None:
    class State:
        data = torch.zeros(2)

        def read(self) -> list[Any]:
            return [self.data]

        def write(self, data: list[Any]) -> None:
            (self.data,) = data

    state = State()
    first = state.data

    def step() -> torch.Tensor:
        state.data = state.data.clone().add_(1.0)
        return state.data * 10

    with torch.inference_mode():
        tape = RecordingGraphs().capture(step, state)
        assert state.data is first and first.tolist() == [0, 0]
        assert tape.replay(BATCH).tolist() == [10, 10]
        kept = state.data
        state.data = torch.full((2,), 5.0)
        assert tape.replay(BATCH).tolist() == [60, 60]
    assert state.data.tolist() == [6, 6]
    assert kept.tolist() == [1, 1]


def test_the_arena_is_counted() -> None:
    graphs = RecordingGraphs()
    with torch.inference_mode():
        graphs.capture(lambda: torch.ones(256).view(16, 16) + 1)
    assert graphs.arena_bytes() == 2 * 1024
