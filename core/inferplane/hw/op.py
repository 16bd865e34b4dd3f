"""What an op is, what an implementation of one must offer, and what it gets when it is built.

An op is four things in one file under `ops/`: a frozen, hashable spec; a reference in plain torch;
a tolerance model; and an input generator. A composite is a declared fusion: a list of ops that
run one after the other unless somebody implements the whole.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from inferplane.hw.batch import ForwardBatch
    from inferplane.hw.device import Device
    from inferplane.hw.kv import LayerKV

Determinism = Literal["none", "run", "batch"]
"""none: any bits. run: the same batch gives the same bits. batch: the bits of a token do not
depend on batch composition, chunking, its place in the batch, or cache hits."""

Capture = Literal["yes", "decode", "plan", "no"]
"""yes: can be recorded. decode: only steps in which every sequence computes one token, because
padded shapes of others cost too much. plan: recordable, but `plan` must run before each replay.
no: eager; attention is then left out of recordings where they can break, other ops are not used
where steps are recorded."""

STRENGTH: dict[str, int] = {"none": 0, "run": 1, "batch": 2}


class Spec(Protocol):
    """The static side of one use of an op: a frozen dataclass without tensors or token counts."""

    @property
    def determinism(self) -> Determinism: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """An implementation can serve a spec."""

    priority: int = 50
    """0 to 100; the highest wins"""
    extend: int | None = None
    """in place of `priority` for the steps in which a sequence computes several tokens: those of
    attention.paged may be another implementation's, unless the determinism is "batch\""""
    notes: str = ""
    workspace_bytes: int = 0
    invariance: Determinism = "run"
    capture: Capture = "yes"
    layouts: tuple[str, ...] = ()
    """KV layouts that it can use, best first; empty: any with strided views"""
    page_sizes: tuple[int, ...] = ()
    """page sizes that it can use, best first; empty: any"""


@dataclass(frozen=True, slots=True)
class Reject:
    """An implementation cannot serve a spec. `reason` is for humans and never empty.

    Codes: dtype, shape, feature, layout, page_size, hardware, library. The resolver adds
    determinism, capture, strict, override, and error when `supports` raised.
    """

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Packing:
    """Packed weights as plain tensors, so that core can keep them in a file: later starts map it
    and call `load` in place of `prepack`. For weights that are packed on the host."""

    form: str
    """names the layout and whatever it depends on besides the spec and the weights, its version
    above all: weights kept under another form are packed again"""
    save: "Callable[[Any], Mapping[str, Tensor]]"
    """what `prepack` returned -> all of it as host tensors"""
    load: "Callable[[Mapping[str, Tensor]], Any]"
    """such tensors, aligned to 64 bytes and never to be written to -> what `run` wants"""


@dataclass(slots=True)
class Bound:
    """An op ready to be called: chosen once when the model is built.

    `run` takes the op's arguments. `plan`, if any, is called once per step and batch before the
    first `run`. `prepack` takes the op's weights and returns what `run` wants in their place;
    with `packing`, it is not called for weights that were packed before.
    """

    run: Callable[..., Any]
    into: Callable[..., None] | None = None
    """`run` with one more argument in the end: the tensor that its one result is written to"""
    plan: "Callable[[ForwardBatch], Any] | None" = None
    prepack: Callable[..., Any] | None = None
    packing: Packing | None = None


class BuildContext(Protocol):
    """What an implementation may use while it is built and while it runs."""

    device: "Device"

    def empty(self, shape: Sequence[int], dtype: str) -> "Tensor":
        """A result tensor on the device; from the graph's arena while capturing."""

    def kv(self, layer: int) -> "LayerKV":
        """The KV cache of one layer. Its `data` may be replaced, so keep the LayerKV, not it."""

    def bind(self, op: str, spec: Any) -> Bound:
        """Another op, resolved like any; for decompositions."""


class OpImpl(Protocol):
    """One way to compute an op (or composite) on some devices."""

    @property
    def name(self) -> str:
        """vendor.kernel; the name that --op and explain use"""

    def supports(self, spec: Any, device: "Device") -> Support | Reject:
        """Pure, under a millisecond, no tensors; never depends on a run-time token count."""

    def build(self, spec: Any, ctx: BuildContext) -> Bound:
        """Called once per use in the model."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a result may be from a float64 oracle: |x - y| <= absolute + relative * |y|,
    and the relative Frobenius norm of the difference <= `norm`."""

    relative: float
    absolute: float
    norm: float


EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def rounding(dtype: str, terms: int, factor: float = 4.0) -> Tolerance:
    """Bound for sums of `terms` products kept in float32 and rounded to `dtype` once or twice.

    Rounding errors of a sum grow with the square root of its length (Higham, Accuracy and
    Stability of Numerical Algorithms, section 2.8), those of the result with the type's epsilon.
    """
    sums = EPSILON["float32" if dtype != "float64" else dtype] * terms**0.5
    bound = factor * max(EPSILON[dtype], sums)
    return Tolerance(relative=bound, absolute=bound, norm=bound / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One entry of the contract's op table."""

    name: str
    spec: type
    reference: OpImpl
    tolerance: Callable[[Any], Tolerance]
    inputs: Callable[[Any, int], dict[str, Any]]
    """(spec, seed) -> arguments of `run` in its order, on the CPU, in the spec's types. `weight`,
    `bias` and `down` go through `prepack` if there is one; `kv` fills the pages first."""
    parts: Callable[[Any], tuple[tuple[str, Any], ...]] | None = None
    """composites only: (op name, spec) of the decomposition, in order"""
    mutates: tuple[str, ...] = ()
    """arguments that an implementation may overwrite: callers do not use them afterwards"""
    own: bool = False
    """core's own arithmetic, which a device may do with fewer launches: no model is slow without"""

    @property
    def falls_back(self) -> bool:
        """Whether its reference is a fallback, not an op's parts or what core does itself"""
        return self.parts is None and not self.own


@dataclass(frozen=True, slots=True)
class Reference:
    """The plain torch implementation of an op. It serves every spec on every device, holds its
    bits fixed in batch mode, and can be captured."""

    build_bound: Callable[[Any, BuildContext], Bound]
    rejects: "Callable[[Any, Device], Reject | None] | None" = None
    name: str = "reference"
    wasteful: bool = False
    """padded steps that prefill cost it far more than exact ones"""

    def supports(self, spec: Any, device: "Device") -> Support | Reject:
        reason = self.rejects(spec, device) if self.rejects else None
        capture: Capture = "yes"
        if self.wasteful and device.info.shape_policy != "static":
            capture = "decode"
        return reason or Support(
            priority=0, invariance="batch", capture=capture, notes="plain torch"
        )

    def build(self, spec: Any, ctx: BuildContext) -> Bound:
        return self.build_bound(spec, ctx)


def describe(spec: Any) -> str:
    """A spec on one line, for explain and error texts; empty fields are left out."""
    shown = []
    for item in fields(spec):
        value = getattr(spec, item.name)
        if is_dataclass(value):
            shown.append(f"{item.name}=({describe(value)})")
        elif value not in (None, 0, False, "", ()):
            shown.append(f"{item.name}={value}")
    return " ".join(shown)
