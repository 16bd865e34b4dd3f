"""Requests of fixed lengths, so many at a time, and what they took. Knows no engine and no server:
whoever computes a request is a `Target`.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`shared_prefix` of the `input_len` tokens are the same in all requests."""

    input_len: int
    output_len: int
    concurrency: int
    num_prompts: int
    shared_prefix: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """What the target says that one request was."""

    output_tokens: int
    cached_tokens: int


class Target(Protocol):
    """`vocab_size` bounds the random token ids."""

    name: str
    vocab_size: int

    async def run(
        self, prompt: list[int], output_len: int, on_tokens: Callable[[], None]
    ) -> Counts:
        """Compute one request; `on_tokens` is called whenever tokens arrive."""
        ...


@dataclass(slots=True)
class Timing:
    """When one request was sent, and when its tokens came, in seconds."""

    start: float
    arrivals: list[float] = field(default_factory=list)
    counts: Counts = Counts(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One level of concurrency. Times are in seconds, latencies by percentile in milliseconds.

    `ttft` is from sending a request to its first tokens, `itl` between later arrivals of tokens.
    """

    concurrency: int
    requests: int
    input_len: int
    output_len: int
    shared_prefix: int
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_tokens_per_second: float
    total_tokens_per_second: float
    ttft_ms: dict[str, float]
    itl_ms: dict[str, float]


def make_prompts(work: Workload, vocab_size: int, rng: random.Random) -> list[list[int]]:
    """Random token ids; the lowest tenth is left out, where special tokens often lie."""
    ids = range(vocab_size // 10, vocab_size)
    prefix = rng.choices(ids, k=work.shared_prefix)
    rest = work.input_len - work.shared_prefix
    return [prefix + rng.choices(ids, k=rest) for _ in range(work.num_prompts)]


async def measure(
    target: Target,
    work: Workload,
    rng: random.Random,
    on_done: Callable[[int], None] = lambda done: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Send a request whenever one of `concurrency` senders is idle. The first failure ends all."""
    waiting = list(reversed(make_prompts(work, target.vocab_size, rng)))
    timings: list[Timing] = []

    async def sender() -> None:
        while waiting:
            prompt = waiting.pop()
            timings.append(await timed(target, prompt, work.output_len, clock))
            on_done(len(timings))

    start = clock()
    tasks = [asyncio.create_task(sender()) for _ in range(work.concurrency)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return summarize(work, timings, clock() - start)


async def timed(
    target: Target, prompt: list[int], output_len: int, clock: Callable[[], float]
) -> Timing:
    timing = Timing(clock())
    timing.counts = await target.run(prompt, output_len, lambda: timing.arrivals.append(clock()))
    return timing


def summarize(work: Workload, timings: Sequence[Timing], seconds: float) -> Measured:
    output = sum(t.counts.output_tokens for t in timings)
    prompt = work.input_len * len(timings)
    gaps = [b - a for t in timings for a, b in zip(t.arrivals, t.arrivals[1:], strict=False)]
    return Measured(
        concurrency=work.concurrency,
        requests=len(timings),
        input_len=work.input_len,
        output_len=work.output_len,
        shared_prefix=work.shared_prefix,
        seconds=seconds,
        prompt_tokens=prompt,
        cached_tokens=sum(t.counts.cached_tokens for t in timings),
        output_tokens=output,
        output_tokens_per_second=output / seconds,
        total_tokens_per_second=(output + prompt) / seconds,
        ttft_ms=percentiles([t.arrivals[0] - t.start for t in timings if t.arrivals]),
        itl_ms=percentiles(gaps),
    )


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the mean in milliseconds; empty without samples."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    found = {
        f"p{p}": 1000 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in PERCENTILES
    }
    return {**found, "mean": 1000 * statistics.fmean(ordered)}
