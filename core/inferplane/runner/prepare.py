"""What is agreed with a device before any weight is read: types, sizes, and the KV layout."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from inferplane.config import Config
from inferplane.env import cache_dir
from inferplane.hw.device import Device, Hints
from inferplane.hw.graphs import GraphBackend
from inferplane.hw.host import HostThreads
from inferplane.hw.op import Determinism
from inferplane.plugins import Plugins, open_device
from inferplane.runner.breaks import breaks_of
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
from inferplane.runner.schemes import SchemeChooser
from inferplane.weights import DummyWeights, TensorSource

KV_TYPES = {"fp8_e4m3": "float8_e4m3fn", "int8": "int8"}
"""--kv-cache-dtype -> KVSpec.dtype, where it is not that of the model"""


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


def prepare(config: Config, model: dict[str, Any], plugins: Plugins) -> Prepared:
    """Choose device, types, sizes and KV layout. Raises the errors of each choice."""
    architecture = find_architecture(model)
    model = architecture.settings(model)
    determinism: Determinism = "batch" if config.enable_deterministic_inference else "run"
    options: dict[str, Any] = {"determinism": determinism, "threads": config.threads}
    with suppress(RuntimeError):  # a user without a home, as in some containers
        options["cache"] = str(cache_dir())
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
    resolver = make_resolver(config, plugins, device, graphs)
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
        breaks=breaks_of(graphs, device),
    )
    return Prepared(config, model, architecture, device, hints, graphs, plugins, build, threads)
