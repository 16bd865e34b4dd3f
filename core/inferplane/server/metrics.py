"""Prometheus metrics of one server. Labels take values from fixed sets only."""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from inferplane.generation import Delta
from inferplane.messages import Stats

TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
INTER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

GAUGES = {
    "running": "sequences being computed",
    "waiting": "sequences in the queue",
    "pages_total": "pages of the KV cache",
    "pages_free": "pages of the KV cache that hold nothing",
    "pages_cached": "pages of the KV cache that hold prefixes nobody runs",
}
COUNTERS = {
    "steps": "steps of the engine",
    "prompt_tokens": "tokens of prompts",
    "cached_tokens": "tokens of prompts that the prefix cache held",
    "output_tokens": "tokens generated",
    "forced_tokens": "tokens generated that a grammar forced, without sampling",
    "retractions": "sequences that had to give back their pages",
    "finished": "sequences that came to their end",
    "aborted": "sequences that were aborted",
    "refused": "sequences that the engine refused",
}


class Metrics:
    """Counts requests and times tokens; asks for the engine's own figures at each scrape."""

    def __init__(
        self,
        stats: Callable[[], Stats],
        ready: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stats = stats
        self._ready = ready
        self._clock = clock
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "inferplane_requests",
            "answered requests by route and status",
            ("route", "status"),
            registry=self.registry,
        )
        self._first = Histogram(
            "inferplane_time_to_first_token_seconds",
            "from the start of a request's work to its first token",
            buckets=TTFT_BUCKETS,
            registry=self.registry,
        )
        self._between = Histogram(
            "inferplane_inter_token_seconds",
            "between the tokens of one sequence",
            buckets=INTER_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """For the registry: the engine's figures."""
        stats = self._stats()
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"inferplane_{name}", text, value=getattr(stats, name))
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"inferplane_{name}", text, value=getattr(stats, name))
        yield GaugeMetricFamily(
            "inferplane_ready", "1 if the engine answered recently", value=float(self._ready())
        )

    def render(self) -> bytes:
        return generate_latest(self.registry)

    async def timed(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
        """`deltas`, timed on their way."""
        started = self._clock()
        latest: dict[int, float] = {}
        async with aclosing(deltas):
            async for delta in deltas:
                now = self._clock()
                count = len(delta.tokens)
                previous = latest.get(delta.index)
                if previous is None:
                    self._first.observe(now - started)
                    count -= 1
                for _ in range(count):
                    self._between.observe((now - (previous or now)) / count)
                latest[delta.index] = now
                yield delta
