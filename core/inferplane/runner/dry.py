"""A model built of weights that have a shape and no data: to decide and to count, before any
weight is read.

The model is built for real, its ops are resolved but not made.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from inferplane.checkpoint.quantized import configured_scheme
from inferplane.hw.op import Bound
from inferplane.hw.ops import TABLE
from inferplane.hw.quantization import QuantizedWeight, Scheme
from inferplane.runner.build import Build, make_resolver
from inferplane.runner.memory import plan_memory
from inferplane.runner.prepare import Prepared, Source
from inferplane.runner.schemes import SchemeChooser
from inferplane.weights import stored_scheme

if TYPE_CHECKING:
    from torch import Tensor

NO_DATA = "meta"
"""torch's device for tensors that have a shape and nothing else"""


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

    def stored_name(self, name: str) -> str:
        return self._rename(name, self._stored)

    def skip(self, name: str) -> None:
        raise AssertionError("there are no packed weights here")

    def take_quantized(self, name: str, shape: Sequence[int], scheme: Scheme) -> QuantizedWeight:
        made = no_data(shape[0], shape[1], scheme)
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


def no_data(outputs: int, inputs: int, scheme: Scheme) -> QuantizedWeight:
    """A quantized weight [N, K] with the shapes and types that it would have."""
    import torch

    int4 = scheme.weight == "int4"
    kind = torch.uint8 if int4 else getattr(torch, scheme.weight)
    values = torch.empty((outputs, inputs // 2 if int4 else inputs), dtype=kind, device=NO_DATA)
    scale = torch.empty(scheme.scale_shape(outputs, inputs), device=NO_DATA)
    return QuantizedWeight(scheme, values, scale, scale.clone() if scheme.asymmetric else None)


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


def build_dry(prepared: Prepared, weights: NoWeights) -> Plan:
    """Resolve all that the model binds, with the resolver that loading would use."""
    made = {item.name: getattr(prepared.build, item.name) for item in fields(Build)}
    build = Plan(**{**made, "weights": weights})
    prepared.architecture.construct(prepared.model, build)
    return build


def check_memory(prepared: Prepared, source: Source) -> int:
    """ConfigError with the numbers if the model cannot fit, before anything is loaded; else the
    bytes that its weights need. Leaves no trace in `prepared`."""
    config, build = prepared.config, prepared.build
    resolver = make_resolver(config, prepared.plugins, prepared.device, prepared.graphs)
    fresh = replace(build, resolver=resolver, schemes=SchemeChooser(config, resolver), bound=[])
    weights = NoWeights(config.dtype, source, prepared)
    build_dry(replace(prepared, build=fresh), weights)
    plan_memory(
        config,
        prepared.model,
        prepared.device,
        prepared.hints,
        build.groups,
        build.handles,
        reserved=weights.nbytes,
    )
    return weights.nbytes
