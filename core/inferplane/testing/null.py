"""A device without hardware: plain torch on the CPU that behaves like whichever kind of device a
test needs, and turns what such a device would punish with silence into a wrong result or an error.

It can want padded shapes, write nothing in place, deliver copies to the host only when an event
is waited for, need exact lengths on the host, and record its steps.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inferplane.errors import DeviceError
from inferplane.hw import (
    CONTRACT,
    BackendInfo,
    Bound,
    BuildContext,
    DeviceInfo,
    ForwardBatch,
    GraphBackend,
    Hints,
    OpImpl,
    Reject,
    Support,
    TorchDevice,
    Traits,
    impl,
)
from inferplane.hw.device import ShapePolicy
from inferplane.hw.ops import TABLE
from inferplane.testing.recording import RecordingGraphs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class NullSettings:
    """What the device is like; the defaults describe the CPU."""

    shape_policy: ShapePolicy = "dynamic"
    functional: bool = False
    """nothing is written in place: KV pages and tables are replaced"""
    asynchronous: bool = False
    """copies to the host arrive when an event is waited for, not before"""
    planned: bool = False
    """attention needs exact host lengths, which it plans with outside the recording"""
    recorded: bool = False
    buckets: tuple[int, ...] = (4, 16, 48)
    mixed: tuple[tuple[int, int], ...] = ()
    max_programs: int | None = None


SETTINGS: dict[str, NullSettings] = {
    "dynamic": NullSettings(),
    "asynchronous": NullSettings(asynchronous=True),
    "functional": NullSettings(functional=True),
    "bucketed": NullSettings(shape_policy="bucketed"),
    "bucketed-recorded": NullSettings(shape_policy="bucketed", recorded=True, asynchronous=True),
    "bucketed-planned": NullSettings(
        shape_policy="bucketed", recorded=True, asynchronous=True, planned=True
    ),
    "bucketed-mixed": NullSettings(
        shape_policy="bucketed",
        recorded=True,
        asynchronous=True,
        planned=True,
        mixed=((8, 2), (24, 4), (40, 8)),
    ),
    "static": NullSettings(shape_policy="static"),
    "static-recorded": NullSettings(shape_policy="static", recorded=True, planned=True),
    "static-functional": NullSettings(
        shape_policy="static", recorded=True, functional=True, asynchronous=True
    ),
    "few-programs": NullSettings(shape_policy="static", recorded=True, max_programs=4),
}
"""The settings that core's suite runs on; the first is what the others are compared with."""


@dataclass(slots=True)
class NullEvent:
    """Done once the device has delivered `number` of its late copies."""

    device: "NullDevice"
    number: int

    def synchronize(self) -> None:
        self.device.deliver(self.number)

    def query(self) -> bool:
        return self.device.delivered >= self.number


class NullDevice(TorchDevice):
    """The CPU with the manners of NullSettings."""

    def __init__(self, info: DeviceInfo, settings: NullSettings) -> None:
        super().__init__(info)
        self.settings = settings
        self.delivered = 0
        self._late: deque[Callable[[], None]] = deque()
        self._host = host_tensor(self._late) if settings.asynchronous else None

    def record(self) -> NullEvent | None:
        if not self.settings.asynchronous:
            return None
        return NullEvent(self, self.delivered + len(self._late))

    def deliver(self, number: int) -> None:
        import torch

        with torch.inference_mode():
            while self.delivered < number:
                self.delivered += 1
                self._late.popleft()()

    def synchronize(self) -> None:
        self.deliver(self.delivered + len(self._late))

    def host_buffer(self, elements: int, dtype: str) -> "Tensor":
        plain = super().host_buffer(elements, dtype)
        return plain if self._host is None else plain.as_subclass(self._host)


def host_tensor(late: "deque[Callable[[], None]]") -> "type[Tensor]":
    """The type of host buffers whose asynchronous copies happen when `late` is worked off.

    A copy to the host leaves poison until then; a copy from the host is an error if the buffer was
    changed before the device is known to have read it.
    """
    import torch

    def to_host(target: "Tensor", source: "Tensor") -> None:
        value = source.detach().clone()
        target.fill_(torch.iinfo(target.dtype).min if not target.is_floating_point() else torch.nan)

        def arrive() -> None:
            target.copy_(value)

        late.append(arrive)

    def from_host(target: "Tensor", source: "Tensor") -> None:
        target.copy_(source)
        value = source.clone()

        def read() -> None:
            if not torch.equal(source, value):
                raise DeviceError("the host changed a buffer that the device had yet to read")

        late.append(read)

    class HostTensor(torch.Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if func is not torch.Tensor.copy_ or not kwargs.pop("non_blocking", False):
                return super().__torch_function__(  # type: ignore[no-untyped-call]
                    func, types, args, kwargs
                )
            target, source = args
            plain = [x.as_subclass(torch.Tensor) for x in (target, source)]
            (to_host if isinstance(target, cls) else from_host)(*plain)
            return target

    return HostTensor


@dataclass(slots=True)
class Sealed:
    """What a functional device holds before a step, to show that nobody wrote into it. The handles
    and tables may point to new tensors afterwards; the old ones must be as they were."""

    tensors: "list[Tensor]"
    copies: "list[Tensor]"

    @classmethod
    def of(cls, tensors: "Iterable[Tensor]") -> "Sealed":
        kept = list(tensors)
        return cls(kept, [tensor.clone() for tensor in kept])

    def verify(self) -> None:
        for index, (tensor, copy) in enumerate(zip(self.tensors, self.copies, strict=True)):
            if not tensor.equal(copy):
                raise DeviceError(f"persistent tensor {index} was written in place")


@dataclass(slots=True)
class PlannedAttention:
    """The reference, but it takes the lengths from its plan, as kernels that are launched with
    host lists do. Without a new plan before each step it computes with the old lengths."""

    name: str = "null.planned"

    def supports(self, spec: Any, device: Any) -> Support | Reject:
        if not device.info.traits.exact_host_lengths:
            return Reject("feature", "made for devices that need exact host lengths")
        return Support(priority=60, invariance="batch", capture="plan")

    def build(self, spec: Any, ctx: BuildContext) -> Bound:
        import torch

        inner = TABLE["attention.paged"].reference.build(spec, ctx)
        buffers: dict[int, Tensor] = {}
        device = ctx.device.info.torch_device

        def plan(batch: ForwardBatch) -> None:
            if not batch.host_exact:
                raise DeviceError("null.planned needs exact host lengths")
            count = len(batch.host_seq_len)
            if count not in buffers:
                buffers[count] = torch.empty(2 * count + 1, dtype=torch.int32, device=device)
            words = torch.tensor([*batch.host_seq_len, *batch.host_q_start], dtype=torch.int32)
            buffers[count].copy_(words)

        def run(q: "Tensor", batch: ForwardBatch, sinks: "Tensor | None" = None) -> "Tensor":
            count = len(batch.host_seq_len)
            planned = buffers[count]
            batch = replace(batch, seq_len=planned[:count], q_start=planned[count:])
            out: Tensor = inner.run(q, batch, sinks)
            return out

        return Bound(run=run, plan=plan)


@dataclass(frozen=True, slots=True)
class PlacedLogits:
    """The reference, which also writes its result where it is told to."""

    name: str = "null.placed"

    def supports(self, spec: Any, device: Any) -> Support:
        return Support(priority=60, invariance="batch")

    def build(self, spec: Any, ctx: BuildContext) -> Bound:
        inner = TABLE["logits"].reference.build(spec, ctx)

        def into(hidden: "Tensor", weight: Any, out: "Tensor") -> None:
            out.copy_(inner.run(hidden, weight))

        return replace(inner, into=into)


class NullBackend:
    """The plugin: `Plugins().register("null", NullBackend(settings))`."""

    def __init__(self, settings: NullSettings = SETTINGS["dynamic"]) -> None:
        self.settings = settings
        self.recorder = RecordingGraphs()

    @impl
    def backend_info(self) -> BackendInfo:
        return BackendInfo(
            name="null", version="1", devices=("null",), api=(CONTRACT, CONTRACT), rank=0
        )

    @impl
    def probe(self) -> list[DeviceInfo]:
        traits = Traits(
            inplace=not self.settings.functional,
            exact_host_lengths=self.settings.planned,
            memory="host",
        )
        return [
            DeviceInfo(
                backend="null",
                torch_device="cpu",
                name="null device",
                shape_policy=self.settings.shape_policy,
                traits=traits,
            )
        ]

    @impl
    def create_device(self, info: DeviceInfo, options: Mapping[str, Any]) -> NullDevice:
        return NullDevice(info, self.settings)

    @impl
    def op_impls(self, device: NullDevice) -> Iterable[tuple[str, OpImpl]]:
        if not self.settings.planned:
            return []
        return [("attention.paged", PlannedAttention()), ("logits", PlacedLogits())]

    @impl
    def graphs(self, device: NullDevice) -> GraphBackend | None:
        return self.recorder if self.settings.recorded else None

    @impl
    def hints(self, device: NullDevice) -> Hints:
        settings = self.settings
        return Hints(
            token_buckets=settings.buckets,
            mixed_buckets=settings.mixed,
            max_programs=settings.max_programs,
        )
