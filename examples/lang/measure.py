"""Runs an example with and without the prefix cache, and says what that saved."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

from inferplane import Engine
from inferplane.lang.engine import EngineBackend

KV_CACHE_TOKENS = 16384


@dataclass(frozen=True)
class Measured:
    answer: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    seconds: float

    @property
    def computed(self) -> int:
        return self.prompt_tokens - self.cached_tokens


def measure(run: Callable[[EngineBackend], str], model: str, device: str, shared: bool) -> Measured:
    with Engine(
        model, device=device, kv_cache_tokens=KV_CACHE_TOKENS, disable_prefix_cache=not shared
    ) as engine:
        backend = EngineBackend(engine)
        engine.generate("warm up", {"max_tokens": 4})
        start = time.perf_counter()
        answer = run(backend)
        seconds = time.perf_counter() - start
        usage = backend.token_usage
        return Measured(
            answer, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, seconds
        )


def main(run: Callable[[EngineBackend], str], description: str | None) -> None:
    """`run` carries out the programs on a backend and returns what they say."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    alone = measure(run, options.model, options.device, shared=False)
    shared = measure(run, options.model, options.device, shared=True)
    print(shared.answer)
    print(f"\n{'':16}{'prompt tokens':>15}{'cached':>9}{'computed':>10}{'output':>8}{'seconds':>9}")
    for name, result in (("without sharing", alone), ("with sharing", shared)):
        print(
            f"{name:16}{result.prompt_tokens:15}{result.cached_tokens:9}{result.computed:10}"
            f"{result.output_tokens:8}{result.seconds:9.2f}"
        )
    print(
        f"{alone.computed / shared.computed:.1f} times fewer prompt tokens computed,"
        f" {alone.seconds / shared.seconds:.1f} times as fast"
    )
