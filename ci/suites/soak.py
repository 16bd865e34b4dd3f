"""A long run of an engine in process under everything that clients do; every answer is compared bit
for bit with a quiet run of the same request.

    python ci/suites/soak.py --device cuda --minutes 8 --concurrency 256
    python ci/suites/soak.py --device xeon --model llama --minutes 0.5 --concurrency 24

Deterministic mode, a KV cache far too small for what is open, chunked prompts with shared
beginnings, a prefix cache, random sampling parameters, stop strings, constraints on the output
where llguidance is installed, clients that leave and requests that are aborted at any moment.
First every request of the pool is served alone, uncached and unchunked; then clients pick from the
pool until the time is over. At the end nothing is open and every page is free or cached.

Exit status 1: a wrong answer, with the request that shows it; a failed request; a page that was
lost; or a soak that did not provoke what it is for.
"""

import argparse
import asyncio
import importlib.util
import random
import sys
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from inferplane.config import Config
from inferplane.engine import EngineCore, open_engine
from inferplane.errors import InferplaneError
from inferplane.generation import Completion, Generator, Sample
from inferplane.local_client import LocalClient
from inferplane.plugins import Plugins
from inferplane.sampling_params import SamplingParams
from inferplane.testing.hash_device import SimulationError
from inferplane.testing.invariants import verify_idle, verify_scheduler
from inferplane.testing.tiny import CONFIGS, TinySource, TinyTensors
from inferplane.text.pieces import BYTE_OF_CHAR
from inferplane.text.tokenizer import Tokenizer

PROCESS_BEGUN = time.monotonic()
LONGEST = 2048
REPORT_SECONDS = 30.0
SMALLEST_VOCAB = 512
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FORMS: tuple[dict[str, Any], ...] = (
    {"regex": "[a-f]{3,40}"},
    {"regex": "(ab|cd|ef){2,30}x"},
    {"json_schema": '{"type": "object", "properties": {"n": {"type": "integer"}}}'},
    {"json_schema": '{"enum": ["alpha", "beta", "a much longer gamma"]}'},
)


def words_tokenizer(size: int) -> Tokenizer:
    """A vocabulary in which every token is text: 256 bytes, then words of small letters; the last
    token ends a sequence."""
    vocab = dict(BYTE_OF_CHAR)
    for token in range(256, size - 1):
        word, rest = "", token
        while rest:
            rest, letter = divmod(rest, len(LETTERS))
            word += LETTERS[letter]
        vocab["".join(reversed(word)) + "_"] = token
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    return Tokenizer(backend, eos_ids=[size - 1])


class Source(TinySource):
    """A tiny model whose weights are made once, with a vocabulary that has room for all bytes."""

    _made: TinyTensors | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.config["vocab_size"] = max(SMALLEST_VOCAB, self.config["vocab_size"])
        self.config["max_position_embeddings"] = LONGEST

    def tensors(self) -> TinyTensors:
        if self._made is None:
            self._made = super().tensors()
        return self._made


@dataclass
class Case:
    """A request of the pool, and what it is answered when nothing else runs."""

    index: int
    prompt: list[int]
    params: SamplingParams
    answer: Completion = field(default_factory=Completion)

    def __str__(self) -> str:
        request = {"prompt": self.prompt, "params": msgspec.to_builtins(self.params)}
        return f"case {self.index}: {msgspec.json.encode(request).decode()}"


def pool(count: int, seed: int, vocab: int, constrained: bool) -> list[Case]:
    choose = random.Random(seed)
    shared = [[choose.randrange(vocab) for _ in range(n)] for n in (60, 200, 450)]
    cases = []
    for index in range(count):
        begin = choose.choice([[], *shared])
        own = [choose.randrange(vocab) for _ in range(choose.choice((1, 7, 30, 130, 400)))]
        kept = begin[: choose.choice((0, len(begin) // 2, len(begin)))]
        form = constrained and index % 6 == 0
        params = random_params(choose, vocab, form)
        cases.append(Case(index, kept + own, params))
    return cases


def random_params(choose: random.Random, vocab: int, constrained: bool) -> SamplingParams:
    most = choose.choice((1, 20, 150, 300, 600))
    values: dict[str, Any] = {
        "temperature": choose.choice((0.0, 0.7, 1.0)),
        "seed": choose.getrandbits(63),
        "max_tokens": most,
    }
    some: dict[str, Any] = {
        "top_k": choose.choice((1, 20, 300)),
        "top_p": choose.choice((0.5, 0.9)),
        "min_p": choose.choice((0.02, 0.2)),
        "repetition_penalty": choose.choice((0.9, 1.3)),
        "frequency_penalty": choose.choice((-0.5, 0.8)),
        "presence_penalty": choose.choice((-0.4, 1.1)),
        "logit_bias": {choose.randrange(vocab): choose.uniform(-9, 9) for _ in range(5)},
        "min_tokens": choose.randint(0, most),
        "stop": [choose.choice(LETTERS) + choose.choice(LETTERS) for _ in range(3)],
        "stop_token_ids": [choose.randrange(vocab) for _ in range(60)],
        "ignore_eos": True,
        "logprobs": choose.choice((0, 1, 5)),
        "prompt_logprobs": choose.choice((0, 2)),
    }
    wanted = choose.sample(sorted(some), choose.randint(0, 5))
    values |= {name: some[name] for name in wanted}
    if {"logprobs", "prompt_logprobs"} & set(values):
        values["logprob_token_ids"] = [choose.randrange(vocab) for _ in range(choose.randint(0, 3))]
    if constrained:
        values |= choose.choice(FORMS) | {"min_tokens": 0}
    return SamplingParams(**values)


def difference(have: Completion, want: Completion, whole: bool) -> str:
    """What differs; "" if nothing does. Of one that was cut off, what it has must begin `want`."""
    for index, (a, b) in enumerate(zip(have.tokens, want.tokens, strict=False)):
        if a != b:
            return f"token {index} is {a}, alone it is {b}"
    for index, (x, y) in enumerate(zip(have.logprobs, want.logprobs, strict=False)):
        if x != y:
            return f"logprobs of token {index} are {x}, alone {y}"
    if have.prompt_logprobs is not None and have.prompt_logprobs != want.prompt_logprobs:
        return "logprobs of the prompt differ"
    if len(have.tokens) > len(want.tokens):
        return f"{len(have.tokens)} tokens, alone {len(want.tokens)}"
    if not whole:
        return ""
    for name in ("tokens", "text", "finish_reason", "matched"):
        mine, alone = getattr(have, name), getattr(want, name)
        if mine != alone:
            return f"{name} is {mine!r}, alone {alone!r}"
    return ""


class Soak:
    """Clients of one engine; the first thing that goes wrong ends all of them."""

    def __init__(self, options: argparse.Namespace, core: EngineCore, cases: list[Case]) -> None:
        self.cases = cases
        self.core = core
        self.count: Counter[str] = Counter()
        self.failure = ""
        self._options = options
        self._client = LocalClient(core)
        self._generator = Generator(self._client, words_tokenizer(core.info.vocab_size))
        self._choose = random.Random(options.seed)
        self._begun = time.monotonic()

    @property
    def over(self) -> bool:
        if self.failure:
            return True
        if self._options.requests:
            return self.count["asked"] >= int(self._options.requests)
        now, options = time.monotonic(), self._options
        late = options.within and now - PROCESS_BEGUN > options.within
        return bool(late) or now - self._begun > 60 * options.minutes

    async def alone(self) -> None:
        """Fill in the answers of the pool."""
        for case in self.cases:
            (sample,) = self._generator.prepare([case.prompt], case.params)
            (case.answer,) = await self._generator.complete([sample])
        await self.close()

    async def together(self) -> None:
        clients = [
            asyncio.create_task(self._keep_asking()) for _ in range(self.core.info.max_running)
        ]
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.gather(*clients)
        finally:
            for task in (watch, *clients):
                task.cancel()
            await asyncio.gather(watch, *clients, return_exceptions=True)
            while self.core.has_work and not self.failure:
                await asyncio.sleep(0)
            await self.close()

    async def close(self) -> None:
        await self._client.close()
        self._generator.close()

    async def _keep_asking(self) -> None:
        while not self.over:
            case = self._choose.choice(self.cases)
            self.count["asked"] += 1
            try:
                await self._ask(case)
            except (InferplaneError, AssertionError) as error:
                self._fail(case, f"{type(error).__name__}: {error}")

    def _fail(self, case: Case, what: str) -> None:
        self.failure = self.failure or f"{what}\n{case}"

    async def _ask(self, case: Case) -> None:
        """To the end, or until after some tokens the client leaves or its request is aborted, or
        until after some steps it is cancelled, whatever it was waiting for."""
        (sample,) = self._generator.prepare([case.prompt], case.params)
        end = self._choose.choices(("stay", "leave", "abort", "cancel"), (70, 10, 10, 10))[0]
        self.count[end] += 1
        done = Completion()
        if end == "cancel":
            task = asyncio.create_task(self._read(sample, done))
            for _ in range(self._choose.randint(0, 200)):
                if not task.done():
                    await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        else:
            after = 10**9 if end == "stay" else self._choose.randint(0, len(case.answer.tokens))
            await self._read(sample, done, end, after)
        whole = done.finish_reason is not None and done.finish_reason != "abort"
        self.count["compared"] += len(done.tokens)
        self.count["constrained"] += case.params.constraint is not None
        wrong = difference(done, case.answer, whole)
        if wrong:
            self._fail(case, wrong)

    async def _read(self, sample: Sample, done: Completion, end: str = "", after: int = -1) -> None:
        async with aclosing(self._generator.stream([sample])) as deltas:
            async for delta in deltas:
                done.add(delta)
                if end == "leave" and len(done.tokens) >= after:
                    return
                if end == "abort" and len(done.tokens) >= after:
                    self._client.abort(sample.submit.request_id)

    async def _watch(self) -> None:
        due = time.monotonic()
        while True:
            await asyncio.sleep(0.2)
            if time.monotonic() >= due:
                due += REPORT_SECONDS
                try:
                    verify_scheduler(self.core.scheduler)
                except SimulationError as error:
                    self.failure = self.failure or f"the scheduler's books: {error}"
                print(self.line(), flush=True)

    def line(self) -> str:
        stats, seconds = self.core.scheduler.stats(), time.monotonic() - self._begun
        return (
            f"{seconds:5.0f} s: {self.count['asked']} requests, {self.count['compared']} tokens"
            f" compared, {self.count['constrained']} constrained, {stats.steps} steps,"
            f" {stats.running} run, {stats.retractions} retractions, {stats.aborted} aborted,"
            f" {stats.cached_tokens} of {stats.prompt_tokens} prompt tokens cached"
        )

    def verdict(self) -> list[str]:
        """What is wrong after the last request."""
        found = [self.failure] if self.failure else []
        stats = self.core.scheduler.stats()
        if not self.failure:
            if stats.pages_free + stats.pages_cached != stats.pages_total:
                found.append(f"pages were lost: {stats}")
            try:
                verify_idle(self.core.scheduler)
            except SimulationError as error:
                found.append(f"after the last request: {error}")
        if stats.failed:
            found.append(f"{stats.failed} requests failed in the engine")
        wanted = {"retractions": stats.retractions, "aborts": stats.aborted}
        wanted["prompts from the cache"] = stats.cached_tokens
        if any(case.params.constraint for case in self.cases):
            wanted["constrained requests"] = self.count["constrained"]
        missing = [name for name, count in wanted.items() if not count]
        return found + [f"the soak saw no {name}" for name in missing if not self.failure]


def config(options: argparse.Namespace, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "model": options.model,
        "device": options.device,
        "dtype": options.dtype,
        "max_running": options.concurrency,
        "max_queue": 4 * options.concurrency,
        "max_batch_tokens": 384,
        "page_size": 16,
        "max_model_len": LONGEST,
        "kv_cache_tokens": options.kv_cache_tokens or max(1600, 15 * options.concurrency),
        "enable_deterministic_inference": True,
        "disable_graphs": options.disable_graphs,
        "disable_overlap": options.disable_overlap,
    }
    return Config(**(values | changes))


async def run(options: argparse.Namespace) -> list[str]:
    source = Source(options.model)
    vocab = int(source.config["vocab_size"])
    constrained = not options.no_grammars and importlib.util.find_spec("llguidance") is not None
    cases = pool(options.pool, options.seed, vocab, constrained)

    def engine(**changes: Any) -> EngineCore:
        return open_engine(
            config(options, **changes),
            source,
            Plugins(),
            tokenizer=lambda: words_tokenizer(vocab),
        )

    begun = time.monotonic()
    whole = {"max_batch_tokens": LONGEST, "kv_cache_tokens": 2 * LONGEST, "max_running": 1}
    quiet = Soak(options, engine(disable_prefix_cache=True, **whole), cases)
    await quiet.alone()
    tokens = sum(len(case.answer.tokens) for case in cases)
    print(f"{len(cases)} requests alone: {tokens} tokens, {time.monotonic() - begun:.0f} s")
    soak = Soak(options, engine(), cases)
    await soak.together()
    print(soak.line())
    return soak.verdict()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="a long run of an engine under load")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", choices=CONFIGS, default="qwen3", help="with random weights")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--within", type=float, help="seconds that all may take, loading included")
    parser.add_argument("--requests", type=int, default=0, help="stop after so many instead")
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--pool", type=int, default=300, help="different requests")
    parser.add_argument("--kv-cache-tokens", type=int, help="default: 15 for each open request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-grammars", action="store_true")
    parser.add_argument("--disable-graphs", action="store_true")
    parser.add_argument("--disable-overlap", action="store_true")
    options = parser.parse_args(arguments)
    found = asyncio.run(run(options))
    for line in found:
        print(f"FAILED (seed {options.seed}): {line}")
    print("soak: " + ("failed" if found else "nothing wrong"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
