"""Workloads on an engine in process: tokens in, tokens out. The same as the peer's script runs."""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from inferplane.engine import EngineCore
from inferplane.messages import Output, Submit
from inferplane.sampling_params import SamplingParams

Prompt = list[int]


def random_prompts(rng: random.Random, count: int, length: int) -> list[Prompt]:
    """Ids that every vocabulary has."""
    return [[rng.randrange(5, 10000) for _ in range(length)] for _ in range(count)]


def submit(
    core: EngineCore, prompts: Iterable[Prompt], lengths: Sequence[int], **params: Any
) -> None:
    """Requests that generate exactly `lengths` tokens; greedy unless `params` say otherwise."""
    chosen = SamplingParams(**({"temperature": 0.0, "ignore_eos": True} | params))
    for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        refused = core.handle(
            Submit(
                request_id=f"{time.perf_counter_ns()}-{index}",
                prompt=prompt,
                params=chosen,
                stop_ids=[],
                max_tokens=length,
                seed=index,
            )
        )
        if refused:
            raise RuntimeError(f"the engine refused a request of the benchmark: {refused}")


def drain(core: EngineCore, on_step: Callable[[list[Any]], None] | None = None) -> None:
    """Run until nothing is left. A request that failed ends the benchmark."""
    while core.has_work:
        outputs = core.step()
        for output in outputs:
            if isinstance(output, Output) and output.finish_reason == "error":
                raise RuntimeError(f"a request failed: {output.error}")
        if on_step is not None:
            on_step(outputs)


def total_seconds(
    core: EngineCore, prompts: list[Prompt], lengths: Sequence[int], **params: Any
) -> float:
    """From the submission of all requests to the last token, on an empty prefix cache."""
    core.scheduler.flush_cache()
    begin = time.perf_counter()
    submit(core, prompts, lengths, **params)
    drain(core)
    return time.perf_counter() - begin


def decode_step(core: EngineCore, batch: int, context: int, output: int, **params: Any) -> float:
    """Seconds of a step in which `batch` sequences decode, by the host's clock over the loop:
    scheduling, launch, sampling and result, so that whatever the device does not hide shows."""
    rng = random.Random(batch)
    submit(core, random_prompts(rng, batch, context), [output] * batch, **params)
    started: set[str] = set()
    while len(started) < batch:
        started.update(out.request_id for out in core.step() if isinstance(out, Output))
    stamps = [time.perf_counter()]
    drain(core, lambda outputs: stamps.append(time.perf_counter()) if outputs else None)
    steps = [after - before for before, after in itertools.pairwise(stamps)]
    return statistics.median(steps[len(steps) // 8 : -max(len(steps) // 8, 1)])


def first_token(core: EngineCore, length: int, repeats: int = 7) -> float:
    """Median seconds from submission to the first token of one prompt on an idle engine."""
    rng = random.Random(length)
    times = [total_seconds(core, random_prompts(rng, 1, length), [1]) for _ in range(repeats + 2)]
    return statistics.median(times[2:])


def nano(core: EngineCore) -> tuple[float, int]:
    """nano-vllm's workload: 256 requests, 100 to 1,024 tokens in and out, temperature 0.6.
    Returns seconds and output tokens."""
    draw = random.Random(0).randint
    prompts = [[draw(0, 10000) for _ in range(draw(100, 1024))] for _ in range(256)]
    lengths = [draw(100, 1024) for _ in range(256)]
    return total_seconds(core, prompts, lengths, temperature=0.6), sum(lengths)


def shared_prefix(core: EngineCore) -> float:
    """Output tokens per second of 256 requests that share 2,048 of their 2,276 tokens."""
    rng = random.Random(1)
    shared = random_prompts(rng, 1, 2048)[0]
    prompts = [shared + own for own in random_prompts(rng, 256, 228)]
    return 256 * 128 / total_seconds(core, prompts, [128] * 256)


def nothing_shared(core: EngineCore) -> float:
    """The same of 64 requests of which no two share anything."""
    prompts = random_prompts(random.Random(2), 64, 2276)
    return 64 * 128 / total_seconds(core, prompts, [128] * 64)
