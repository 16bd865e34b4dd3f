"""Which implementation serves which op: decided once when the model is built, and explainable.

Nothing here runs per step. Implementations are asked with the static spec; the answer of each one
is kept, so that `inferplane explain` can print why it was chosen or not.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from inferplane.errors import ConfigError, ResolveError
from inferplane.hw.device import Device
from inferplane.hw.kv import KVLayout
from inferplane.hw.op import STRENGTH, OpImpl, Reject, Support, describe
from inferplane.hw.ops import TABLE

Verdict = Support | Reject
ATTENTION = "attention.paged"


@dataclass(slots=True)
class Decision:
    """How one (op, spec) was resolved. `uses` counts the places in the model that share it.
    `extend`: what serves the steps in which a sequence computes several tokens, if it is not
    `chosen`."""

    op: str
    spec: Any
    chosen: OpImpl
    support: Support
    verdicts: list[tuple[str, Verdict]]
    extend: tuple[OpImpl, Support] | None = None
    uses: int = 0

    @property
    def supports(self) -> list[Support]:
        return [self.support, *([self.extend[1]] if self.extend else [])]


@dataclass(slots=True)
class Resolver:
    """Chooses among the implementations of one device.

    `overrides` maps an op name (or "*") to an implementation name; `capture` asks for ops that a
    graph can record, but for those named in `breaks`; `require_native` turns a fallback to a
    reference into an error.
    `attention`: auto, or the implementation of attention that --attention-backend names.
    """

    device: Device
    impls: list[tuple[str, OpImpl]]
    overrides: dict[str, str] = field(default_factory=dict)
    require_native: bool = False
    capture: bool = False
    breaks: frozenset[str] = frozenset()
    attention: str = "auto"
    decisions: dict[tuple[str, Any], Decision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for op in self.overrides:
            if op != "*" and op not in TABLE:
                raise ConfigError(f"--op {op}: no such op; the ops are {', '.join(TABLE)}")
        everywhere = self.overrides.get("*", "reference")
        names = {"reference", *(impl.name for _, impl in self.impls)}
        if everywhere not in names:
            raise ConfigError(
                f"--op *={everywhere}: no such implementation here; there are {sorted(names)}"
            )
        for op, impl in self.impls:
            if op not in TABLE:
                raise ResolveError(f"{impl.name} implements {op}, which the contract lacks")
        if self.attention != "auto":
            self.overrides = self.overrides | {ATTENTION: self._attention_impl()}

    def _attention_impl(self) -> str:
        """The implementation that --attention-backend means, by its short or its whole name."""
        if ATTENTION in self.overrides:
            raise ConfigError(
                f"--attention-backend {self.attention} and --op {ATTENTION}="
                f"{self.overrides[ATTENTION]} say the same thing: leave one of them out"
            )
        known = [impl.name for op, impl in self.impls if op == ATTENTION] + ["reference"]
        for name in known:
            if self.attention in (short_name(name), name):
                return name
        raise ConfigError(
            f"--attention-backend {self.attention}: {self.device.info.name} has none of this name; "
            f"there are auto, {', '.join(map(short_name, known))}"
        )

    def resolve(self, op: str, spec: Any) -> Decision:
        """The decision for a spec, taken now or earlier. Raises ResolveError."""
        key = (op, spec)
        if key not in self.decisions:
            self.decisions[key] = self._decide(op, spec)
        decision = self.decisions[key]
        decision.uses += 1
        return decision

    def _decide(self, op: str, spec: Any) -> Decision:
        known = [impl for name, impl in self.impls if name == op] + [TABLE[op].reference]
        names = [impl.name for impl in known]
        everywhere = self.overrides.get("*")
        forced = self.overrides.get(op, everywhere if everywhere in names else None)
        if forced is not None and forced not in names:
            raise ConfigError(f"--op {op}={forced}: no such implementation here; there are {names}")
        part = None if forced else self._named_part(op, spec)
        verdicts: list[tuple[str, Verdict]] = []
        able: list[tuple[OpImpl, Support]] = []
        for impl in known:
            verdict = self._judge(op, spec, impl)
            if forced is not None and impl.name != forced and isinstance(verdict, Support):
                verdict = Reject("override", f"{self._asking(op)} asks for {forced}")
            if part and impl is not TABLE[op].reference and isinstance(verdict, Support):
                verdict = Reject("override", f"--op asks for {part}, which is a part of this")
            verdicts.append((impl.name, verdict))
            if isinstance(verdict, Support):
                able.append((impl, verdict))
        if not able:
            asking = self._asking(op)
            text = no_implementation(op, spec, verdicts, self.require_native, asking)
            if asking != "--op":
                text = self._attention_unavailable(verdicts) + text
            raise ResolveError(text)
        best = max(able, key=lambda it: it[1].priority)
        extend = best
        if op == ATTENTION and spec.determinism != "batch":
            extend = max(able, key=lambda it: _extending(it[1]))
        return Decision(op, spec, *best, verdicts, None if extend is best else extend)

    def _named_part(self, op: str, spec: Any) -> str | None:
        """A part of a composite, or a part of one, that --op names: it must be what runs."""
        entry = TABLE[op]
        for name, part in entry.parts(spec) if entry.parts else ():
            if name in self.overrides:
                return f"{name}={self.overrides[name]}"
            found = self._named_part(name, part)
            if found:
                return found
        return None

    def _asking(self, op: str) -> str:
        """The option that an override of this op comes from."""
        return "--attention-backend" if op == ATTENTION and self.attention != "auto" else "--op"

    def _attention_unavailable(self, verdicts: list[tuple[str, Verdict]]) -> str:
        """The first line of the error: why not this one, and which ones are possible."""
        reasons = {name: v for name, v in verdicts if isinstance(v, Reject)}
        able = [short_name(name) for name, v in reasons.items() if v.code == "override"]
        reason = reasons[self.overrides[ATTENTION]].reason
        return (
            f"--attention-backend {self.attention}: {reason}; "
            f"possible here: {', '.join(['auto', *able] if able else ['none'])}\n"
        )

    def _judge(self, op: str, spec: Any, impl: OpImpl) -> Verdict:
        try:
            verdict = impl.supports(spec, self.device)
        except Exception as error:
            return Reject("error", f"supports: {type(error).__name__}: {error}")
        if isinstance(verdict, Reject):
            return verdict
        if STRENGTH[verdict.invariance] < STRENGTH[spec.determinism]:
            return Reject("determinism", f"gives {verdict.invariance}, asked {spec.determinism}")
        kv = getattr(spec, "kv", None)
        if kv is not None:
            if not verdict.layouts and kv.opaque and impl is not TABLE[op].reference:
                return Reject("layout", f"{kv.layout} has no strided views")
            if verdict.layouts and kv.layout not in verdict.layouts:
                return Reject("layout", f"{kv.layout} not in {verdict.layouts}")
            if verdict.page_sizes and kv.page_size not in verdict.page_sizes:
                return Reject("page_size", f"{kv.page_size} not in {verdict.page_sizes}")
        fallback = impl is TABLE[op].reference and TABLE[op].falls_back
        asked = impl.name in (self.overrides.get(op), self.overrides.get("*"))
        if self.require_native and fallback and not asked:
            return Reject("strict", "--require-native allows no fallback")
        if self.capture and verdict.capture == "no" and op not in self.breaks:
            return Reject("capture", "cannot be recorded; --disable-graphs allows it")
        return verdict

    def kernels(self, op: str, spec: Any) -> list[tuple[str, Verdict]]:
        """The answers of all but the reference, whatever --op says."""
        return [(impl.name, self._judge(op, spec, impl)) for name, impl in self.impls if name == op]

    def choose_pages(
        self, spec: Any, layouts: list[KVLayout], page_sizes: list[int]
    ) -> tuple[KVLayout, int]:
        """Layout and page size that the best attention for `spec` wants; earlier entries win ties.

        Raises ResolveError if no combination has an implementation.
        """
        best: tuple[int, KVLayout, int] | None = None
        failure: ResolveError | None = None
        for size in page_sizes:
            for layout in layouts:
                kv = replace(spec.kv, layout=layout.id, opaque=not layout.strided, page_size=size)
                try:
                    found = self._decide(ATTENTION, replace(spec, kv=kv))
                except ResolveError as error:
                    failure = failure or error
                    continue
                if best is None or found.support.priority > best[0]:
                    best = (found.support.priority, layout, size)
        if best is None:
            raise failure or ResolveError("no KV layout and page size to choose from")
        return best[1], best[2]

    def fallbacks(self) -> list[str]:
        """Ops that run by reference although the device brings implementations of its own."""
        if not self.impls:
            return []
        return sorted(
            {
                d.op
                for d in self.decisions.values()
                if d.chosen is TABLE[d.op].reference and TABLE[d.op].falls_back
            }
        )


def _extending(support: Support) -> int:
    return support.priority if support.extend is None else support.extend


def short_name(impl: str) -> str:
    """What --attention-backend calls it: acme.flash is flash, acme.attention is acme."""
    vendor, _, kernel = impl.partition(".")
    return kernel if kernel and kernel != "attention" else vendor


def no_implementation(
    op: str, spec: Any, verdicts: list[tuple[str, Verdict]], strict: bool, asking: str
) -> str:
    """The error text when every candidate was rejected. `asking`: the option that overrides."""
    layer = getattr(spec, "layer", None)
    where = "" if layer is None else f" for layer {layer}"
    lines = [f"no implementation of {op}{where}" + (" (strict mode)" if strict else "")]
    lines.append(f"  spec: {describe(spec)}")
    for name, verdict in verdicts:
        assert isinstance(verdict, Reject)
        lines.append(f"  {name:<20} rejected[{verdict.code}]: {verdict.reason}")
    if any(verdict.code == "override" for _, verdict in verdicts if isinstance(verdict, Reject)):
        lines.append(f"  try: leave out {asking}, or name another implementation")
    elif strict:
        lines.append(f"  try: --op {op}=reference (slow), or leave out --require-native")
    else:
        lines.append("  try: another --device, or a model without this feature")
    return "\n".join(lines)


def parse_overrides(items: list[str]) -> dict[str, str]:
    """["linear=reference"] -> {"linear": "reference"}. Raises ConfigError."""
    result = {}
    for item in items:
        op, equals, impl = item.partition("=")
        if not equals or not op or not impl:
            raise ConfigError(f"--op {item}: write OP=IMPLEMENTATION, e.g. linear=reference")
        result[op] = impl
    return result
