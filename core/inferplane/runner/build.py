"""From a checkpoint and a device to a model whose ops are bound: what happens once, at start.

Knows no architecture: models are found through the entry point group `inferplane.models`.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from inferplane.config import Config
from inferplane.errors import ConfigError, ModelError
from inferplane.hw.batch import ForwardBatch
from inferplane.hw.device import Device, Hints
from inferplane.hw.graphs import GraphBackend
from inferplane.hw.host import HostThreads
from inferplane.hw.kv import CANONICAL, KVGroup, KVLayout, KVSpec, LayerKV
from inferplane.hw.op import Bound, Determinism, OpImpl, Packing, Support
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.hw.quantization import Scheme
from inferplane.layers import LayerCache, Model
from inferplane.plugins import Plugins, model_rows
from inferplane.resolver import Resolver, parse_overrides
from inferplane.runner.breaks import OPS, Breaks, breaks_of
from inferplane.runner.packed import PackedWeights
from inferplane.runner.schemes import SchemeChooser, refuse_hardware
from inferplane.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_PAGE_SIZE = 16
DENSE = Packing("plain", lambda weight: {"weight": weight}, lambda kept: kept["weight"])


def by_queries(one: Bound, several: Bound) -> Bound:
    """Attention by `one` in steps in which every sequence computes one token, else by `several`."""

    def of(batch: ForwardBatch) -> Bound:
        return one if batch.max_q == 1 else several

    def run(q: "Tensor", batch: ForwardBatch, *more: Any) -> "Tensor":
        out: Tensor = of(batch).run(q, batch, *more)
        return out

    def plan(batch: ForwardBatch) -> None:
        wanted = of(batch).plan
        if wanted is not None:
            wanted(batch)

    return Bound(run=run, plan=plan if one.plan or several.plan else None)


@dataclass(slots=True)
class Build:
    """What models and op implementations are built with; see layers.Builder and
    hw.op.BuildContext."""

    device: Device
    resolver: Resolver
    dtype: str
    determinism: Determinism
    max_model_len: int
    groups: list[KVGroup]
    handles: dict[int, LayerKV]
    weights: Weights
    schemes: SchemeChooser
    packed: PackedWeights | None = None
    breaks: Breaks | None = None
    """where recordings leave ops out"""
    bound: list[Bound] = field(default_factory=list)

    def bind(self, op: str, spec: Any) -> Bound:
        decision = self.resolver.resolve(op, spec)
        made = self._made(decision.chosen, decision.support, spec)
        if decision.extend is not None:
            made = by_queries(made, self._made(*decision.extend, spec))
        self.bound.append(made)
        return made

    def _made(self, impl: OpImpl, support: Support, spec: Any) -> Bound:
        made = impl.build(spec, self)
        if self.breaks is not None and support.capture == "no":
            made = replace(made, run=self.breaks.wrap(made.run))
        return made

    def bind_packed(
        self,
        op: str,
        spec: Any,
        weights: Mapping[str, Sequence[int]],
        read: Callable[[], Sequence[Any]],
    ) -> tuple[Bound, Any]:
        bound = self.bind(op, spec)
        prepack = bound.prepack
        assert prepack is not None
        if self.packed is None or bound.packing is None:
            return bound, prepack(*read())
        chosen = self.resolver.decisions[op, spec].chosen.name
        use = f"{op} {chosen} {spec!r}"
        return bound, self._kept(use, bound.packing, weights, lambda: prepack(*read()))

    def take_dense(self, name: str, shape: Sequence[int]) -> "Tensor":
        take = self.weights.take
        on_host = self.device.info.traits.memory == "host"
        if self.packed is None or not on_host or self.weights.scheme(name) is None:
            return take(name, shape)
        made: Tensor = self._kept(
            f"dense {self.dtype}", DENSE, {name: shape}, lambda: take(name, shape)
        )
        return made

    def _kept(
        self,
        use: str,
        packing: Packing,
        weights: Mapping[str, Sequence[int]],
        make: Callable[[], Any],
    ) -> Any:
        assert self.packed is not None
        stored = [(self.weights.stored_name(name), *shape) for name, shape in weights.items()]
        key = f"{use} {packing.form} {stored}"
        found = self.packed.find(key)
        if found is None:
            made = make()
            self.packed.add(key, packing.save(made))
            return made
        for name in weights:
            self.weights.skip(name)
        return packing.load(found)

    def scheme(
        self, op: str, spec: Any, names: Sequence[str], sizes: Sequence[int], width: int
    ) -> Scheme | None:
        stored = [self.weights.scheme(name) for name in names]
        return self.schemes.choose(op, spec, stored, sizes, width)

    def group_of(self, layer: int) -> tuple[int, KVSpec]:
        for index, group in enumerate(self.groups):
            if layer in group.layers:
                return index, group.spec
        raise ModelError(f"layer {layer} keeps no KV cache, but attends")

    def kv(self, layer: int) -> LayerKV:
        return self.handles[layer]

    def empty(self, shape: Sequence[int], dtype: str) -> "Tensor":
        import torch

        return torch.empty(
            tuple(shape), dtype=getattr(torch, dtype), device=self.device.info.torch_device
        )


class Settings(dict[str, Any]):
    """A model's configuration, flat. A field asked for with [] is a ModelError if it is missing or
    null; `get` is for fields that a configuration may leave out."""

    def __init__(self, model_type: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._model_type = model_type

    def __getitem__(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise ModelError(
                f"the model's config.json has no {name}, which {self._model_type} models need: "
                "it is damaged, or of another model type"
            )
        return value


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model class with the flags of its row in the map."""

    model_type: str
    cls: Any
    flags: dict[str, Any]
    package: str

    def settings(self, config: dict[str, Any]) -> Settings:
        """What the model reads: the text part with the family's defaults, where the architecture
        says what these are. Raises ModelError for features that it lacks."""
        adapt = getattr(self.cls, "settings", None)
        return Settings(self.model_type, adapt(config, **self.flags) if adapt else config)

    def caches(self, config: dict[str, Any]) -> list[LayerCache]:
        layers: list[LayerCache] = self.cls.caches(config, **self.flags)
        return layers

    def construct(self, config: dict[str, Any], build: Build) -> Model:
        model: Model = self.cls(config, build, **self.flags)
        return model

    def stored_name(self, name: str, stored: Sequence[str]) -> str:
        """The checkpoint's name of a weight, where the architecture renames."""
        rename = getattr(self.cls, "stored_name", None)
        return str(rename(name, stored)) if rename else name


def find_architecture(config: dict[str, Any]) -> Architecture:
    """The class for a configuration's model_type. ModelError lists what is supported."""
    wanted = config.get("model_type")
    known: list[str] = []
    for _, module, package in model_rows():
        rows = module.ARCHITECTURES
        if wanted in rows:
            path, flags = rows[wanted]
            where, _, name = path.partition(":")
            cls = getattr(importlib.import_module(where), name)
            return Architecture(str(wanted), cls, flags, package)
        known.extend(rows)
    raise ModelError(
        f"architecture {wanted!r} is not supported; supported are {', '.join(sorted(known))}"
    )


def choose_dtype(config: Config, model: dict[str, Any], device: Device, hints: Hints) -> Config:
    """Fill in --dtype: the backend's preference, else the checkpoint's type if the device has it,
    else float32. ConfigError for a type that the device lacks."""
    usable = device.dtypes()
    if config.dtype != "auto":
        if config.dtype not in usable:
            raise ConfigError(f"--dtype {config.dtype}: {device.info.name} has {', '.join(usable)}")
        return config
    if hints.dtype:
        return config.decide(f"preferred by {device.info.backend}", dtype=hints.dtype)
    stored = model.get("dtype") or model.get("torch_dtype") or "bfloat16"
    if stored in usable and usable[stored] == "native" and stored != "float16":
        return config.decide("type of the checkpoint", dtype=stored)
    return config.decide(f"{device.info.name} lacks {stored}", dtype="float32")


def choose_length(config: Config, model: dict[str, Any]) -> Config:
    """Fill in and check --max-model-len."""
    limit = int(model.get("max_position_embeddings", 2048))
    if config.max_model_len is None:
        return config.decide("max_position_embeddings of the model", max_model_len=limit)
    if config.max_model_len > limit:
        raise ConfigError(
            f"--max-model-len {config.max_model_len} is more than the model's {limit} positions"
        )
    return config


def choose_threads(config: Config, threads: HostThreads | None, device: Device) -> Config:
    """Fill in --threads with what the device computes with; ConfigError where there are none."""
    if config.threads is None:
        return config.decide(threads.reason, threads=threads.count) if threads else config
    if threads is None:
        raise ConfigError(
            f"--threads {config.threads}: {device.info.name} does not compute with threads of the "
            "host: leave the option out"
        )
    return config


def group_layers(caches: list[LayerCache], dtype: str) -> list[KVGroup]:
    """Layers that keep the same things share a group; full attention comes first."""
    order = sorted(set(caches), key=lambda c: (c.window > 0, c.window, c.num_kv_heads, c.head_dim))
    groups = []
    for cache in order:
        spec = KVSpec(
            num_kv_heads=cache.num_kv_heads, head_dim=cache.head_dim, dtype=dtype, page_size=1
        )
        layers = tuple(i for i, c in enumerate(caches) if c == cache)
        name = f"window{cache.window}" if cache.window else "full"
        groups.append(KVGroup(name=name, window=cache.window, layers=layers, spec=spec))
    return groups


def negotiate_pages(
    config: Config,
    groups: list[KVGroup],
    heads: int,
    resolver: Resolver,
    layouts: list[KVLayout],
    hints: Hints,
) -> tuple[Config, list[KVGroup], dict[int, LayerKV]]:
    """Let the attention implementations choose page size and layout; make empty KV handles.

    All groups share one page size: the prefix cache's tree has one node per page.
    """
    determinism: Determinism = "batch" if config.enable_deterministic_inference else "run"
    sizes = [config.page_size] if config.page_size else []
    if not sizes:
        wanted = [hints.page_size or DEFAULT_PAGE_SIZE, DEFAULT_PAGE_SIZE, 32, 64, 128]
        sizes = list(dict.fromkeys(wanted))
    chosen: list[KVGroup] = []
    handles: dict[int, LayerKV] = {}
    for index, group in enumerate(groups):
        spec = AttentionSpec(
            layer=group.layers[0],
            group=index,
            num_heads=heads,
            kv=group.spec,
            dtype=config.dtype,
            scale=group.spec.head_dim**-0.5,
            window=group.window,
            determinism=determinism,
        )
        layout, size = resolver.choose_pages(spec, layouts, sizes)
        sizes = [size]
        pages = replace(group.spec, layout=layout.id, opaque=not layout.strided, page_size=size)
        group = replace(group, spec=pages)
        chosen.append(group)
        if pages.dtype != config.dtype:
            asked = f"--kv-cache-dtype {config.kv_cache_dtype}"
            refuse_hardware(asked, resolver, "attention.paged", replace(spec, kv=pages))
        for layer in group.layers:
            handles[layer] = LayerKV(layout, group.spec)
    if config.page_size is None:
        config = config.decide("choice of the attention kernels", page_size=sizes[0])
    return config, chosen, handles


def make_resolver(
    config: Config, plugins: Plugins, device: Device, graphs: GraphBackend | None = None
) -> Resolver:
    """`graphs`: steps will be recorded, so that ops that cannot be are not chosen, but where
    recordings can leave them out."""
    return Resolver(
        device=device,
        impls=plugins.op_impls(device),
        overrides=parse_overrides(config.op),
        require_native=config.require_native,
        capture=graphs is not None,
        breaks=OPS if breaks_of(graphs, device) else frozenset(),
        attention=config.attention_backend,
    )


def kv_layouts(plugins: Plugins, device: Device) -> list[KVLayout]:
    """The backend's layouts, then the canonical one."""
    return [*(plugins.optional("kv_layouts", device) or ()), CANONICAL]
