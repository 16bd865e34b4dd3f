"""Opening a device and a model for a configuration: the start of every engine."""

import logging
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass

from inferplane.checkpoint.quantized import configured_scheme
from inferplane.checkpoint.staging import Staging
from inferplane.config import Config
from inferplane.errors import ConfigError
from inferplane.hw.device import Device, DeviceInfo
from inferplane.hw.host import HostThreads
from inferplane.hw.kv import KVGroup, LayerKV
from inferplane.hw.op import Reference
from inferplane.layers import Model
from inferplane.plugins import Plugins
from inferplane.resolver import Resolver
from inferplane.runner.dry import check_memory
from inferplane.runner.inputs import Inputs, bind_derive
from inferplane.runner.memory import Budget, allocate, plan_memory, ran_out
from inferplane.runner.packed import open_packed
from inferplane.runner.prepare import Prepared, Source, prepare
from inferplane.runner.runner import Runner
from inferplane.runner.sampler import Sampler
from inferplane.runner.tables import make_tables
from inferplane.scheduling.pages import KVGroupPages
from inferplane.weights import (
    CheckpointWeights,
    DummyWeights,
    Progress,
    StoredSource,
)

log = logging.getLogger(__name__)


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


def construct(prepared: Prepared, source: Source, progress: Progress | None) -> Model:
    """The model with its weights: packed at an earlier start, or read and packed now."""
    import torch

    config, build, info = prepared.config, prepared.build, prepared.device.info
    tensors, staging = None, None
    if config.load_format == "dummy":
        stored_as = configured_scheme(source.config)
        build.weights = DummyWeights(config.dtype, info.torch_device, {}, stored_as)
    else:
        tensors = source.tensors()
        stored = tensors.names()
        build.packed = open_packed(config, source.config, info, tensors)
        if has_own_memory(info):
            staging = Staging(prepared.device, sum(map(tensors.nbytes, stored)))
        build.weights = CheckpointWeights(
            tensors,
            config.dtype,
            info.torch_device,
            progress,
            rename=lambda name: prepared.architecture.stored_name(name, stored),
            staging=staging,
        )
    with closing(staging) if staging else nullcontext(), torch.inference_mode():
        model = prepared.architecture.construct(prepared.model, build)
    unused = build.weights.unused()
    if unused:
        log.warning("%d weights of the checkpoint are not used, such as %s", len(unused), unused[0])
    if build.packed is not None:
        build.packed.close()
    if isinstance(tensors, StoredSource):
        tensors.release()
    return model


def has_own_memory(info: DeviceInfo) -> bool:
    """Weights are copied to the device; elsewhere they are used where the file is mapped."""
    return info.traits.memory == "discrete" and info.torch_device.partition(":")[0] != "cpu"


def load(
    config: Config,
    source: Source,
    plugins: Plugins,
    progress: Progress | None = None,
    on_prepared: Callable[[Prepared], None] | None = None,
    report: Callable[[str], None] = log.info,
) -> Loaded:
    """Read the weights, build the model, give it memory, and record its steps. `report` gets a
    line about whatever takes long after the weights. ConfigError if the model does not fit: before
    anything is read, unless memory is lost after that."""
    import torch

    prepared = prepare(config, source.config, plugins)
    if on_prepared:
        on_prepared(prepared)
    nbytes = check_memory(prepared, source)
    config, device, build = prepared.config, prepared.device, prepared.build
    try:
        model = construct(prepared, source, progress)
    except torch.OutOfMemoryError as error:
        raise ConfigError(ran_out(config, device, nbytes)) from error
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
    if prepared.graphs is not None and exact_shapes(prepared):
        prepared.graphs = None
        config = config.decide("the reference attention computes all padding", disable_graphs=True)
    runner = make_runner(prepared, config, model, depth)
    runner.record(config.max_running, report, prepared.plugins.compilers(device))
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


def exact_shapes(prepared: Prepared) -> bool:
    """Whether steps are not padded because a fallback would compute all of it."""
    chosen = [decision.chosen for decision in prepared.build.resolver.decisions.values()]
    wasteful = any(isinstance(impl, Reference) and impl.wasteful for impl in chosen)
    return wasteful and not prepared.hints.record_fallbacks


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
    decisions = build.resolver.decisions.values()
    decode_only = any(s.capture == "decode" for d in decisions for s in d.supports)
    mixed = () if decode_only else hints.mixed_buckets
    policy = "dynamic" if exact_shapes(prepared) else device.info.shape_policy
    buckets = hints.token_buckets
    inputs = Inputs(
        device, tables, bind_derive(build), build.groups, policy, buckets, mixed, columns, depth
    )
    return Runner(
        device, model, build, tables, inputs, sampler, prepared.graphs, hints.max_programs
    )
