"""How large the KV cache becomes: the memory that weights, tables and one step leave over."""

from dataclasses import dataclass
from typing import Any

from inferplane.config import Config
from inferplane.errors import ConfigError
from inferplane.hw.device import Device, Hints
from inferplane.hw.host import host_memory
from inferplane.hw.kv import KVGroup, LayerKV
from inferplane.scheduling.pages import KVGroupPages


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes; printed by explain."""

    free: int
    total: int
    step: int
    """activations and logits of the largest step, and of the largest recorded one"""
    kv: int
    pages: tuple[int, ...]
    """by KV group, the null page included"""
    tokens: int
    """that the full-attention group, or the only one, can hold"""


def step_bytes(model: dict[str, Any], config: Config, tokens: int) -> int:
    """What a step of so many tokens needs besides weights and KV: a few rows of every width per
    token, and float32 logits with two copies for sampling."""
    width = 4 if config.dtype == "float32" else 2
    per_token = (8 * int(model["hidden_size"]) + 3 * int(model["intermediate_size"])) * width
    rows = min(config.max_running, tokens)
    return tokens * per_token + 3 * rows * int(model["vocab_size"]) * 4


def recorded_tokens(config: Config, device: Device, hints: Hints) -> int:
    """Of the largest step that is recorded at start: recordings share memory that nothing else
    uses, and it must hold that step."""
    if config.disable_graphs or device.info.shape_policy != "bucketed":
        return 0
    decode = [size for size in hints.token_buckets if size <= config.max_running]
    return max([*decode, *(tokens for tokens, _ in hints.mixed_buckets)], default=0)


def page_counts(config: Config, groups: list[KVGroup], columns: int) -> list[int]:
    """Pages by group when a full-attention group has `columns`: a window group never needs more
    than its window, a chunk and a partial page for each running sequence."""
    size = groups[0].spec.page_size
    counts = []
    for group in groups:
        most = -(-group.window // size) + -(-config.max_batch_tokens // size) + 2
        counts.append(min(columns, config.max_running * most) if group.window else columns)
    return [count + 1 for count in counts]  # the null page


@dataclass(frozen=True, slots=True)
class Have:
    """Bytes: what the device has, and what weights (0: they are loaded) and a step take."""

    free: int
    total: int
    weights: int
    step: int


def too_small(config: Config, device: Device, have: Have) -> str:
    """What to say when not even one page of KV cache fits."""
    weights = f"weights need {_gib(have.weights)}, " if have.weights else ""
    reserve = int(have.total * (1 - config.memory_fraction))
    kept = f", and --memory-fraction {config.memory_fraction} leaves {_gib(reserve)} to others"
    why = f"{weights}a step needs {_gib(have.step)}{kept if reserve else ''}: KV cache has 0 pages"
    flags = (
        f"lower --max-batch-tokens ({config.max_batch_tokens}) or --max-running "
        f"({config.max_running}), raise --memory-fraction, "
    )
    return _no_room(config, device, have.free, have.total, why, flags)


def ran_out(config: Config, device: Device, weights: int) -> str:
    """What to say when weights, of so many bytes, were to fit and did not."""
    why = (
        f"memory ran out while weights were loaded, which need {_gib(weights)} in all and more "
        "while they are converted"
    )
    return _no_room(config, device, *device.memory(), why)


def _no_room(
    config: Config, device: Device, free: int, total: int, why: str, flags: str = ""
) -> str:
    host = host_memory() if device.info.torch_device == "cpu" else None
    limit = f" ({host.limit})" if host and host.limit else ""
    smaller = "choose a smaller model, "
    if config.quantization in ("auto", "none"):
        smaller += "--quantization int8 or int4, "
    more = f", or raise the limit of {_gib(total)}{limit}" if limit else ""
    return (
        f"{config.model} does not fit the memory of {device.info.name}: {_gib(free)} of "
        f"{_gib(total)}{limit} are free; {why}; {smaller}{flags}or end other programs{more}"
    )


def plan_memory(
    config: Config,
    model: dict[str, Any],
    device: Device,
    hints: Hints,
    groups: list[KVGroup],
    handles: dict[int, LayerKV],
    reserved: int = 0,
) -> tuple[Config, Budget]:
    """Sizes of all KV groups. `reserved`: bytes of weights that are not in memory yet. ConfigError
    with the numbers if nothing useful fits."""
    tokens = (config.max_batch_tokens, recorded_tokens(config, device, hints))
    needed = sum(step_bytes(model, config, count) for count in tokens)
    have = Have(*device.memory(), reserved, needed)
    size = groups[0].spec.page_size
    page_bytes = [len(g.layers) * handles[g.layers[0]].layout.page_bytes(g.spec) for g in groups]

    def total_bytes(columns: int) -> int:
        counts = page_counts(config, groups, columns)
        return sum(n * b for n, b in zip(counts, page_bytes, strict=True))

    free, total, step = have.free - reserved, have.total, have.step
    room = int(free - total * (1 - config.memory_fraction)) - step
    assert config.max_model_len is not None
    useful = config.max_running * -(-config.max_model_len // size)
    if config.kv_cache_tokens is not None:
        columns = -(-config.kv_cache_tokens // size)
        if total_bytes(1) > free - step:
            raise ConfigError(too_small(config, device, have))
        if total_bytes(columns) > free - step:
            raise ConfigError(
                f"--kv-cache-tokens {config.kv_cache_tokens} needs {_gib(total_bytes(columns))} "
                f"of memory, {_gib(free - step)} are free: lower it"
            )
    else:
        if hints.kv_cache_bytes:
            room = min(room, hints.kv_cache_bytes)
        low, high = 0, useful
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if total_bytes(middle) <= room else (low, middle - 1)
        columns = low
        reason = f"{_gib(max(room, 0))} left for KV cache of {_gib(total)}"
        if columns == useful:
            reason = "--max-running sequences of --max-model-len"
        config = config.decide(reason, kv_cache_tokens=max(columns * size, 1))
    if columns == 0:
        raise ConfigError(too_small(config, device, have))
    counts = page_counts(config, groups, columns)
    budget = Budget(
        free=free,
        total=total,
        step=step,
        kv=total_bytes(columns),
        pages=tuple(counts),
        tokens=columns * size,
    )
    return config, budget


def allocate(
    groups: list[KVGroup], handles: dict[int, LayerKV], budget: Budget, device: Device
) -> list[KVGroupPages]:
    """Make every layer's pages; returns what the scheduler must know of the groups."""
    result = []
    for group, pages in zip(groups, budget.pages, strict=True):
        for layer in group.layers:
            handle = handles[layer]
            handle.data = handle.layout.alloc(pages, group.spec, device)
        result.append(
            KVGroupPages(
                name=group.name,
                num_pages=pages,
                page_size=group.spec.page_size,
                window=group.window or None,
            )
        )
    return result


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
