"""Why a model would run the way it would on a device: found without reading a weight.

The model is built for real, but of weights without data, and its ops are resolved but not made.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from inferplane.config import Config, settings
from inferplane.hw.kv import KVGroup
from inferplane.hw.op import Support, describe
from inferplane.plugins import Plugins
from inferplane.resolver import Decision
from inferplane.runner.build import Build
from inferplane.runner.dry import NO_DATA, NoWeights, build_dry
from inferplane.runner.inputs import bind_derive
from inferplane.runner.memory import Budget, plan_memory
from inferplane.runner.prepare import Source, prepare
from inferplane.runner.sampler import Sampler
from inferplane.runner.tables import make_tables


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


def explain(
    config: Config, source: Source, plugins: Plugins, given: Iterable[str] = ()
) -> Explanation:
    """`given` names the settings that the user gave. Raises what loading would raise."""
    prepared = prepare(config, source.config, plugins)
    weights = NoWeights(prepared.config.dtype, source, prepared)
    build = build_dry(prepared, weights)
    vocab = int(prepared.model["vocab_size"])
    bind_derive(build)
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
            notes=_notes(decision),
            candidates=candidates,
        )
    return list(merged.values())


def _notes(decision: Decision) -> str:
    known = [decision.support.notes] if decision.support.notes else []
    if decision.extend is not None:
        known.append(f"steps of several tokens a sequence by {decision.extend[0].name}")
    return "; ".join(known)


def _candidate(decision: Decision, name: str, verdict: Any) -> Candidate:
    if not isinstance(verdict, Support):
        return Candidate(
            name=name, verdict="rejected", priority=None, code=verdict.code, reason=verdict.reason
        )
    best = decision.support
    if any(verdict is one for one in decision.supports):
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
