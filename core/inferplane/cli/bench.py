"""`inferplane bench`: throughput and latency of random prompts, in process or of a server."""

import argparse
import asyncio
import dataclasses
import json
import random
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from inferplane.cli.engine import open_from
from inferplane.cli.options import add_model, add_settings
from inferplane.cli.progress import Line
from inferplane.cli.table import table
from inferplane.cli.workload import Counts, Measured, Target, Workload, measure
from inferplane.errors import ConfigError, InferplaneError
from inferplane.offline import Engine
from inferplane.remote import Remote, read_key
from inferplane.sampling_params import SamplingParams

WARM_UP_TOKENS = 8
REMOTE_VOCABULARY = 1000
"""a server does not tell its vocabulary: every real one has the first thousand ids"""

OPTIONS = (
    ("--input-len", 128, "tokens of a prompt"),
    ("--output-len", 128, "tokens of an answer; ends of sequence are ignored"),
    ("--num-prompts", 0, "requests per level; default: twice the concurrency, at least 4"),
    ("--shared-prefix", 0, "how many tokens of the prompts are the same in all"),
    ("--seed", 0, "of the random prompts"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser, optional=True)
    parser.add_argument(
        "--url", default=None, help="measure this server instead of MODEL in process"
    )
    for name, default, text in OPTIONS:
        parser.add_argument(
            name,
            type=int,
            default=default,
            metavar="N",
            help=text + (f" (default: {default})" if default else ""),
        )
    parser.add_argument(
        "--concurrency",
        type=int,
        nargs="+",
        default=[1, 8, 32],
        metavar="N",
        help="levels: requests open at the same time (default: 1 8 32)",
    )
    parser.add_argument("--json", default=None, metavar="FILE", help="write the result there too")
    add_settings(parser)


class LocalTarget:
    """The engine in this process; runs on its event loop."""

    def __init__(self, engine: Engine) -> None:
        self.name = f"{engine.info.model} on {engine.info.device}, {engine.info.dtype}"
        self.vocab_size = min(engine.info.vocab_size, engine.tokenizer.vocab_size)
        self._generator = engine.generator

    async def run(
        self, prompt: list[int], output_len: int, on_tokens: Callable[[], None]
    ) -> Counts:
        params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
        tokens = cached = 0
        samples = self._generator.prepare([prompt], params)
        async with aclosing(self._generator.stream(samples)) as deltas:
            async for delta in deltas:
                on_tokens()
                tokens += len(delta.tokens)
                cached = delta.cached_tokens
        return Counts(tokens, cached)


class RemoteTarget:
    """/v1/completions of a server."""

    vocab_size = REMOTE_VOCABULARY

    def __init__(self, remote: Remote, model: str) -> None:
        self.name = f"{model} at {remote.url}"
        self._remote = remote
        self._model = model

    async def run(
        self, prompt: list[int], output_len: int, on_tokens: Callable[[], None]
    ) -> Counts:
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": output_len,
            "temperature": 0,
            "ignore_eos": True,
            "skip_special_tokens": False,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        usage: dict[str, Any] = {}
        async with aclosing(self._remote.events("/v1/completions", body)) as events:
            async for event in events:
                if event["choices"]:
                    on_tokens()
                usage = event.get("usage") or usage
        details = usage.get("prompt_tokens_details") or {}
        return Counts(usage.get("completion_tokens", 0), details.get("cached_tokens") or 0)


def run(arguments: argparse.Namespace) -> int:
    levels = workloads(arguments)
    if arguments.url is not None:
        remote = Remote(arguments.url, read_key(getattr(arguments, "api_key_file", None)))
        name, results = asyncio.run(_remotely(remote, levels, arguments.seed))
    else:
        with open_from(arguments) as engine:
            target = LocalTarget(engine)
            name, results = target.name, engine.run(run_levels(target, levels, arguments.seed))
    print(name)
    print(render(results))
    if arguments.json is not None:
        write(arguments.json, name, results)
    return 0


async def _remotely(
    remote: Remote, levels: list[Workload], seed: int
) -> tuple[str, list[Measured]]:
    models = await remote.get("/v1/models")
    target = RemoteTarget(remote, models["data"][0]["id"])
    return target.name, await run_levels(target, levels, seed)


def workloads(arguments: argparse.Namespace) -> list[Workload]:
    """One for each level. ConfigError names the option that is out of range."""
    for name, low in (("input_len", 1), ("output_len", 1), ("num_prompts", 0)):
        if getattr(arguments, name) < low:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} is {getattr(arguments, name)}, must be at least {low}")
    if min(arguments.concurrency) < 1:
        raise ConfigError(f"--concurrency is {min(arguments.concurrency)}, must be at least 1")
    if not 0 <= arguments.shared_prefix <= arguments.input_len:
        raise ConfigError(
            f"--shared-prefix is {arguments.shared_prefix}, must be from 0 to --input-len "
            f"({arguments.input_len})"
        )
    return [
        Workload(
            input_len=arguments.input_len,
            output_len=arguments.output_len,
            concurrency=concurrency,
            num_prompts=arguments.num_prompts or max(4, 2 * concurrency),
            shared_prefix=arguments.shared_prefix,
        )
        for concurrency in arguments.concurrency
    ]


async def run_levels(target: Target, levels: list[Workload], seed: int) -> list[Measured]:
    """Measure each level after a short unmeasured one of the same shape. Prompts never repeat."""
    rng, line, results = random.Random(seed), Line(), []
    for work in levels:
        head = f"concurrency {work.concurrency}"
        line.show(f"{head}: warming up")
        warm = dataclasses.replace(
            work,
            output_len=min(WARM_UP_TOKENS, work.output_len),
            num_prompts=min(work.concurrency, work.num_prompts),
        )
        await measure(target, warm, rng)

        def on_done(done: int, head: str = head, of: int = work.num_prompts) -> None:
            line.show(f"{head}: {done}/{of} requests")

        measured = await measure(target, work, rng, on_done)
        line.clear()
        expected = work.num_prompts * work.output_len
        if measured.output_tokens != expected:
            raise InferplaneError(
                f"{target.name} gave {measured.output_tokens} tokens, not {expected}: it does not "
                "honour ignore_eos, or sends no usage"
            )
        results.append(measured)
    return results


def render(results: list[Measured]) -> str:
    rows = [
        ["concurrency", "requests", "in", "out", "output tok/s", "total tok/s"]
        + [f"TTFT {p}" for p in ("p50", "p90", "p99")]
        + [f"ITL {p}" for p in ("p50", "p90", "p99")]
    ]
    for r in results:
        counts = (r.concurrency, r.requests, r.input_len, r.output_len)
        rates = (r.output_tokens_per_second, r.total_tokens_per_second)
        times = [
            f"{latency[p]:.1f}" if latency else "-"
            for latency in (r.ttft_ms, r.itl_ms)
            for p in ("p50", "p90", "p99")
        ]
        rows.append([*map(str, counts), *(f"{rate:.1f}" for rate in rates), *times])
    return table(rows) + "\ntimes in milliseconds"


def write(path: str, name: str, results: list[Measured]) -> None:
    value = {"target": name, "levels": [dataclasses.asdict(r) for r in results]}
    try:
        Path(path).write_text(json.dumps(value, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--json {path} cannot be written: {error}") from error
