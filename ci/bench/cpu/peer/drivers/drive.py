"""What all drivers do alike. A driver runs in its peer's environment as a script, gets a job as
JSON in its argument and prints `RESULT` and JSON. Standard library alone.

A driver gives `main` a function that loads the job's model and returns `generate(prompts, count)`,
which makes exactly `count` tokens for each prompt, greedily, and returns a `Made`.

kind steps  After short unmeasured calls, for each batch size: tokens a second from the moment when
            every sequence has its first token to the last token (decode/BATCH), so that prefill
            does not count; and prompt tokens over the time to the first token (prefill/LENGTH).
            Calls are repeated for `seconds`, at least twice; the median counts.
kind start  One token of a short prompt, the line FIRST, then `output` tokens of a prompt of
            `prompt`, the line READY; the process stays until its input ends, to be looked at.
"""

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

WARM_UP = 4


@dataclass
class Made:
    first: float
    """seconds from the call until every sequence had its first token"""
    rest: float
    """seconds from then on"""
    tokens: int
    """tokens of all sequences made in that time"""


Prompts = list[list[int]]
Generate = Callable[[Prompts, int], Made]
Job = dict[str, Any]


def stamped(count: int, begin: float, arrivals: list[float]) -> Made:
    """For static batches: `arrivals` has the time of each step of `count` sequences."""
    rest = arrivals[-1] - arrivals[0]
    return Made(arrivals[0] - begin, rest, count * (len(arrivals) - 1))


def streamed(sequences: int, count: int, begin: float, steps: Iterator[dict[str, int]]) -> Made:
    """For engines with a scheduler: `steps` gives, after each step, the tokens that each sequence
    has so far; a sequence is missing until its first."""
    first, at_first, made = 0.0, 0, dict.fromkeys("", 0)
    for made in steps:
        if not first and len(made) == sequences:
            first, at_first = time.perf_counter(), sum(made.values())
    end, total = time.perf_counter(), sum(made.values())
    if total != sequences * count:
        raise RuntimeError(f"{total} tokens instead of {sequences * count}")
    return Made(first - begin, end - first, total - at_first)


def main(load: Callable[[Job], tuple[Generate, dict[str, str]]]) -> None:
    job = json.loads(sys.argv[1])
    generate, versions = load(job)
    if job["kind"] == "start":
        start(job, generate)
    else:
        result = {"values": steps(job, generate), "versions": versions}
        print("RESULT", json.dumps(result), flush=True)


def prompts(job: Job, rng: random.Random, count: int, length: int) -> Prompts:
    """Random ids; the lowest tenth is left out, where special tokens often lie."""
    ids = range(job["vocab"] // 10, job["vocab"])
    return [rng.choices(ids, k=length) for _ in range(count)]


def steps(job: Job, generate: Generate) -> dict[str, float]:
    rng, found = random.Random(job["seed"]), {}
    for batch in job["batches"]:
        generate(prompts(job, rng, batch, job["prompt"]), WARM_UP)
        rates = []
        for made in repeated(job, generate, rng, batch, job["prompt"], job["output"]):
            rates.append(made.tokens / made.rest)
        found[f"decode/{batch}"] = statistics.median(rates)
    for length in job["prefill"]:
        generate(prompts(job, rng, 1, length), 1)
        firsts = [made.first for made in repeated(job, generate, rng, 1, length, 1)]
        found[f"prefill/{length}"] = length / statistics.median(firsts)
    return found


def repeated(
    job: Job, generate: Generate, rng: random.Random, batch: int, length: int, output: int
) -> list[Made]:
    begin, done = time.perf_counter(), []
    while len(done) < 2 or time.perf_counter() - begin < job["seconds"]:
        done.append(generate(prompts(job, rng, batch, length), output))
    return done


def start(job: Job, generate: Generate) -> None:
    rng = random.Random(job["seed"])
    generate(prompts(job, rng, 1, 4), 1)
    print("FIRST", flush=True)
    generate(prompts(job, rng, 1, job["prompt"]), job["output"])
    print("READY", flush=True)
    sys.stdin.read()
