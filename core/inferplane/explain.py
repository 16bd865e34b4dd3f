"""Why a model would run the way it would on a device: found without reading a weight.

The model is built for real, but of weights without data, and its ops are resolved but not made.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from inferplane.checkpoint.quantized import configured_scheme
from inferplane.config import Config, settings
from inferplane.hw.kv import KVGroup
from inferplane.hw.op import Bound, Support, describe
from inferplane.hw.ops import TABLE
from inferplane.hw.quantization import QuantizedWeight, Scheme, quantize, weight_only, widen
from inferplane.plugins import Plugins
from inferplane.resolver import Decision
from inferplane.runner.build import Build
from inferplane.runner.load import Prepared, Source, prepare
from inferplane.runner.memory import Budget, plan_memory
from inferplane.runner.sampler import Sampler
from inferplane.runner.tables import make_tables
from inferplane.weights import stored_scheme

if TYPE_CHECKING:
    from torch import Tensor

NO_DATA = "meta"
"""torch's device for tensors that have a shape and nothing else"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One implementation of an op and what became of it. `verdict`: chosen, passed over (it could,
    but another is better) or rejected."""

    name: str
    verdict: str
    priority: int | None
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpChoice:
    """Uses of an op that were decided alike; `spec` leaves out the layer."""

    op: str
    spec: str
    uses: int
    chosen: str
    notes: str
    candidates: list[Candidate]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFacts:
    """One KV group; `page_bytes` counts a page of all its layers."""

    name: str
    window: int
    layers: int
    layout: str
    page_size: int
    page_bytes: int
    pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingFacts:
    """`chosen_by` is "user", "default", or the reason of an automatic choice."""

    name: str
    value: Any
    chosen_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All that `inferplane explain` shows. Memory is in bytes."""

    model: str
    architecture: str
    model_package: str
    device: str
    device_name: str
    torch_device: str
    dtype: str
    weights_bytes: int
    memory: Budget
    ops: list[OpChoice]
    groups: list[GroupFacts]
    fallbacks: list[str]
    settings: list[SettingFacts]
    facts: dict[str, str]
    """what the backend says of the device: threads, instruction set, versions"""


class NoWeights:
    """Shapes only. Counts the bytes that the real weights will take."""

    def __init__(self, dtype: str, source: Source, prepared: Prepared) -> None:
        self.nbytes = 0
        self._dtype = dtype
        dummy = prepared.config.load_format == "dummy"
        self._source = None if dummy else source.tensors()
        self._stored = [] if self._source is None else list(self._source.names())
        self._configured = configured_scheme(source.config)
        self._rename = prepared.architecture.stored_name
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        return not self._stored or self._rename(name, self._stored) in self._stored

    def scheme(self, name: str) -> Scheme | None:
        if self._source is None:
            return self._configured(name)
        return stored_scheme(self._source, self._rename(name, self._stored))

    def take_quantized(self, name: str, shape: Sequence[int], scheme: Scheme) -> QuantizedWeight:
        import torch

        empty = torch.empty(tuple(shape), dtype=torch.float32, device=NO_DATA)
        made = widen(quantize(empty, weight_only(scheme)), scheme)
        key = f"{name} quantized"  # a tied embedding exists in both forms
        if key not in self._taken:
            self._taken.add(key)
            self.nbytes += made.nbytes
        return made

    def take(self, name: str, shape: Sequence[int]) -> "Tensor":
        import torch

        made = torch.empty(tuple(shape), dtype=getattr(torch, self._dtype), device=NO_DATA)
        if name not in self._taken:
            self._taken.add(name)
            self.nbytes += made.numel() * made.element_size()
        return made


class Plan(Build):
    """Resolves what a model binds and makes none of it, so that no kernel meets empty weights."""

    __slots__ = ()

    def bind(self, op: str, spec: Any) -> Bound:
        decision = self.resolver.resolve(op, spec)
        entry = TABLE[op]
        if decision.chosen is entry.reference and entry.parts is not None:
            for part, part_spec in entry.parts(spec):
                self.bind(part, part_spec)
        return Bound(run=_no_run, prepack=_no_prepack)


def _no_run(*arguments: Any, **named: Any) -> Any:
    raise AssertionError("a model ran an op while it was built")


def _no_prepack(*weights: Any) -> Any:
    return None


def explain(
    config: Config, source: Source, plugins: Plugins, given: Iterable[str] = ()
) -> Explanation:
    """`given` names the settings that the user gave. Raises what loading would raise."""
    prepared = prepare(config, source.config, plugins)
    weights = NoWeights(prepared.config.dtype, source, prepared)
    made = {item.name: getattr(prepared.build, item.name) for item in fields(Build)}
    build = Plan(**{**made, "weights": weights})
    prepared.architecture.construct(prepared.model, build)
    vocab = int(prepared.model["vocab_size"])
    Sampler(build, make_tables(1, [1] * len(build.groups), vocab, NO_DATA, True), vocab)
    final, budget = plan_memory(
        build.schemes.record(prepared.config),
        prepared.model,
        prepared.device,
        prepared.hints,
        build.groups,
        build.handles,
        reserved=weights.nbytes,
    )
    info = prepared.device.info
    return Explanation(
        model=source.name,
        architecture=prepared.architecture.model_type,
        model_package=prepared.architecture.package,
        device=info.backend,
        device_name=info.name,
        torch_device=info.torch_device,
        dtype=final.dtype,
        weights_bytes=weights.nbytes,
        memory=budget,
        ops=op_choices(build.resolver.decisions.values()),
        groups=[_group(build, i, g, budget) for i, g in enumerate(build.groups)],
        fallbacks=build.resolver.fallbacks(),
        settings=_settings(final, set(given)),
        facts=dict(plugins.optional("diagnostics", prepared.device) or {}),
    )


def op_choices(decisions: Iterable[Decision]) -> list[OpChoice]:
    """Decisions that differ only in the layer become one entry."""
    merged: dict[tuple[Any, ...], OpChoice] = {}
    for decision in decisions:
        candidates = [_candidate(decision, name, v) for name, v in decision.verdicts]
        spec = decision.spec
        if any(item.name == "layer" for item in fields(spec)):
            spec = replace(spec, layer=0)
        key = (decision.op, spec, tuple(candidates))
        before = merged[key].uses if key in merged else 0
        merged[key] = OpChoice(
            op=decision.op,
            spec=describe(spec),
            uses=before + decision.uses,
            chosen=decision.chosen.name,
            notes=decision.support.notes,
            candidates=candidates,
        )
    return list(merged.values())


def _candidate(decision: Decision, name: str, verdict: Any) -> Candidate:
    if not isinstance(verdict, Support):
        return Candidate(
            name=name, verdict="rejected", priority=None, code=verdict.code, reason=verdict.reason
        )
    best = decision.support
    if verdict is best:
        kind, reason = "chosen", verdict.notes
    elif verdict.priority < best.priority:
        kind = "passed over"
        reason = f"priority {verdict.priority}, {decision.chosen.name} has {best.priority}"
    else:
        kind, reason = "passed over", f"priority {verdict.priority} too, but listed later"
    return Candidate(name=name, verdict=kind, priority=verdict.priority, code="", reason=reason)


def _group(build: Build, index: int, group: KVGroup, budget: Budget) -> GroupFacts:
    page = build.handles[group.layers[0]].layout.page_bytes(group.spec)
    return GroupFacts(
        name=group.name,
        window=group.window,
        layers=len(group.layers),
        layout=group.spec.layout,
        page_size=group.spec.page_size,
        page_bytes=page * len(group.layers),
        pages=budget.pages[index],
    )


def _settings(config: Config, given: set[str]) -> list[SettingFacts]:
    found = []
    for item in settings():
        chooser = config.chosen_by.get(item.name)
        if chooser is None:
            chooser = "user" if item.name in given else "default"
        value = getattr(config, item.name)
        found.append(SettingFacts(name=item.name, value=value, chosen_by=chooser))
    return found
