"""Opening a device and a model for a configuration: the start of every engine."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from inferplane.checkpoint.quantized import configured_scheme
from inferplane.config import Config
from inferplane.hw.device import Device, Hints
from inferplane.hw.graphs import GraphBackend
from inferplane.hw.host import HostThreads
from inferplane.hw.kv import KVGroup, LayerKV
from inferplane.hw.op import Determinism
from inferplane.layers import Model
from inferplane.plugins import Plugins, open_device
from inferplane.resolver import Resolver
from inferplane.runner.build import (
    Architecture,
    Build,
    choose_dtype,
    choose_length,
    choose_threads,
    find_architecture,
    group_layers,
    kv_layouts,
    make_resolver,
    negotiate_pages,
)
from inferplane.runner.inputs import Inputs
from inferplane.runner.memory import Budget, allocate, plan_memory
from inferplane.runner.runner import Runner
from inferplane.runner.sampler import Sampler
from inferplane.runner.schemes import SchemeChooser
from inferplane.runner.tables import make_tables
from inferplane.scheduling.pages import KVGroupPages
from inferplane.weights import CheckpointWeights, DummyWeights, Progress, TensorSource, Weights

KV_TYPES = {"fp8_e4m3": "float8_e4m3fn"}
"""--kv-cache-dtype -> KVSpec.dtype, where it is not that of the model"""

log = logging.getLogger(__name__)


class Source(Protocol):
    """A checkpoint: its Hugging Face configuration and its tensors."""

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> dict[str, Any]: ...

    def tensors(self) -> TensorSource: ...


@dataclass(slots=True)
class Prepared:
    """A device that has agreed on how to run a model, before any weight is read."""

    config: Config
    model: dict[str, Any]
    architecture: Architecture
    device: Device
    hints: Hints
    graphs: GraphBackend | None
    plugins: Plugins
    build: Build
    threads: HostThreads | None


@dataclass(slots=True)
class Loaded:
    """A model that is ready to run."""

    config: Config
    device: Device
    resolver: Resolver
    architecture: str
    vocab_size: int
    groups: list[KVGroup]
    pages: list[KVGroupPages]
    handles: dict[int, LayerKV]
    budget: Budget
    runner: Runner
    model: Model
    depth: int
    threads: HostThreads | None = None


def prepare(config: Config, model: dict[str, Any], plugins: Plugins) -> Prepared:
    """Choose device, types, sizes and KV layout. Raises the errors of each choice."""
    architecture = find_architecture(model)
    model = architecture.settings(model)
    determinism: Determinism = "batch" if config.enable_deterministic_inference else "run"
    options = {"determinism": determinism, "threads": config.threads}
    device, reason = open_device(plugins, config.device, options)
    if reason:
        config = config.decide(reason, device=device.info.backend)
    threads = plugins.optional("host_threads", device)
    config = choose_threads(config, threads, device)
    hints = plugins.optional("hints", device) or Hints()
    config = choose_length(choose_dtype(config, model, device, hints), model)
    defaults = type(config)(model=config.model)
    for name in ("max_running", "max_batch_tokens"):
        proposed = getattr(hints, name)
        if proposed is not None and getattr(config, name) == getattr(defaults, name):
            config = config.decide(f"preferred by {device.info.backend}", **{name: proposed})
    if hints.int8_inputs and config.input_quantization == "auto":
        config = config.decide(f"preferred by {device.info.backend}", input_quantization="int8")
    graphs = None if config.disable_graphs else plugins.optional("graphs", device)
    resolver = make_resolver(config, plugins, device, capture=graphs is not None)
    config, groups, handles = negotiate_pages(
        config,
        group_layers(architecture.caches(model), KV_TYPES.get(config.kv_cache_dtype, config.dtype)),
        int(model["num_attention_heads"]),
        resolver,
        kv_layouts(plugins, device),
        hints,
    )
    assert config.max_model_len is not None
    build = Build(
        device=device,
        resolver=resolver,
        dtype=config.dtype,
        determinism=determinism,
        max_model_len=config.max_model_len,
        groups=groups,
        handles=handles,
        weights=DummyWeights(config.dtype, device.info.torch_device, {}),
        schemes=SchemeChooser(config, resolver),
    )
    return Prepared(config, model, architecture, device, hints, graphs, plugins, build, threads)


def open_weights(prepared: Prepared, source: Source, progress: Progress | None) -> Weights:
    config, torch_device = prepared.config, prepared.device.info.torch_device
    if config.load_format == "dummy":
        return DummyWeights(config.dtype, torch_device, {}, configured_scheme(source.config))
    tensors = source.tensors()
    stored = tensors.names()
    return CheckpointWeights(
        tensors,
        config.dtype,
        torch_device,
        progress,
        rename=lambda name: prepared.architecture.stored_name(name, stored),
    )


def load(
    config: Config,
    source: Source,
    plugins: Plugins,
    progress: Progress | None = None,
    on_prepared: Callable[[Prepared], None] | None = None,
    report: Callable[[str], None] = log.info,
) -> Loaded:
    """Read the weights, build the model, give it memory, and record its steps. `report` gets a
    line about whatever takes long after the weights."""
    import torch

    prepared = prepare(config, source.config, plugins)
    if on_prepared:
        on_prepared(prepared)
    config, device, build = prepared.config, prepared.device, prepared.build
    build.weights = open_weights(prepared, source, progress)
    with torch.inference_mode():
        model = prepared.architecture.construct(prepared.model, build)
    unused = build.weights.unused()
    if unused:
        log.warning("%d weights of the checkpoint are not used, such as %s", len(unused), unused[0])
    config, budget = plan_memory(
        build.schemes.record(config),
        prepared.model,
        device,
        prepared.hints,
        build.groups,
        build.handles,
    )
    pages = allocate(build.groups, build.handles, budget, device)
    depth = 0 if config.disable_overlap or device.record() is None else 1
    runner = make_runner(prepared, config, model, depth)
    runner.record(config.max_running, report)
    device.freeze()
    return Loaded(
        config=config,
        device=device,
        resolver=build.resolver,
        architecture=prepared.architecture.model_type,
        vocab_size=int(prepared.model["vocab_size"]),
        groups=build.groups,
        pages=pages,
        handles=build.handles,
        budget=budget,
        runner=runner,
        model=model,
        depth=depth,
        threads=prepared.threads,
    )


def make_runner(prepared: Prepared, config: Config, model: Model, depth: int) -> Runner:
    """The model with its device tables, inputs and sampler."""
    import torch

    device, build, hints = prepared.device, prepared.build, prepared.hints
    assert config.max_model_len is not None and config.page_size is not None
    columns = -(-config.max_model_len // config.page_size)
    vocab = int(prepared.model["vocab_size"])
    with torch.inference_mode():
        tables = make_tables(
            config.max_running + 1,
            [columns] * len(build.groups),
            vocab,
            device.info.torch_device,
            device.info.traits.inplace,
        )
        sampler = Sampler(build, tables, vocab)
    decode_only = any(d.support.capture == "decode" for d in build.resolver.decisions.values())
    mixed = () if decode_only else hints.mixed_buckets
    inputs = Inputs(device, tables, build.groups, hints.token_buckets, mixed, columns, depth)
    return Runner(
        device, model, build, tables, inputs, sampler, prepared.graphs, hints.max_programs
    )
