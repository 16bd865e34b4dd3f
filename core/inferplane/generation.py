"""From a prompt and sampling parameters to text: checks, the engine's Submits, stop strings,
n samples, token counts. The server, the command line and the offline engine all use it. Knows
nothing of HTTP, nor of where the engine runs.
"""

import asyncio
import logging
import secrets
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec

from inferplane.errors import RequestError
from inferplane.grammar.compile import Choices
from inferplane.grammar.trial import Trials
from inferplane.grammar.vocabulary import vocabulary_of
from inferplane.messages import GRAMMAR_ERROR, ModelInfo, Output, Submit, TokenLogprobs
from inferplane.sampling_params import KINDS, SamplingParams
from inferplane.text.detokenizer import Detokenizer
from inferplane.text.tokenizer import Tokenizer

MAX_SEQUENCES = 1024
"""prompts times samples of one request"""
MAX_CHARS_PER_TOKEN = 256
"""a text longer than this times the context cannot fit and is refused before it is tokenized"""
INLINE_CHARS = 4096
"""longer texts are tokenized in a worker thread"""
WORKERS = 2

SAMPLING_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class EngineClient(Protocol):
    """Something that runs sequences: the client of an engine process, or an engine in this one."""

    @property
    def info(self) -> ModelInfo: ...

    def generate(self, submit: Submit) -> AsyncGenerator[Output, None]:
        """Outputs until one has a finish_reason. RequestError if refused, EngineDeadError if the
        engine died. Closing the iteration early aborts the sequence."""
        ...

    def abort(self, request_id: str) -> None: ...


@dataclass(slots=True)
class Delta:
    """What one sequence has newly produced. `index` is its place in the list that `prepare` gave.

    `finish_reason` and `matched` (the stop id or stop string) are set on its last Delta; the
    logprobs of the prompt come with its first. `ends` is how much of `text` was there after each
    token, if `prepare` was asked to trace.
    """

    index: int
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[TokenLogprobs | None] | None
    cached_tokens: int
    finish_reason: str | None
    matched: int | str | None
    ends: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Completion:
    """All that one sequence has produced."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int = 0
    finish_reason: str | None = None
    matched: int | str | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        self.cached_tokens = delta.cached_tokens
        self.finish_reason = delta.finish_reason
        self.matched = delta.matched


class Sample:
    """One sequence: sample `submit.sample_index` of prompt `prompt_index` of its request.

    With `prompt_only` (max_tokens 0) the engine makes one token, which nobody gets to see.
    """

    def __init__(
        self,
        index: int,
        prompt_index: int,
        submit: Submit,
        tokenizer: Tokenizer,
        prompt_only: bool,
        shown: Mapping[int, str] | None = None,
        trace: bool = False,
    ) -> None:
        params = submit.params
        self.index = index
        self.prompt_index = prompt_index
        self.submit = submit
        self._prompt_only = prompt_only
        self._show_stop = params.include_stop_str_in_output
        self._piecewise = bool(params.stop) or trace
        self._unwatched = params.min_tokens
        self._detokenizer = Detokenizer(
            tokenizer,
            stop=() if params.min_tokens else params.stop,
            skip_special_tokens=params.skip_special_tokens,
            shown=shown,
            include_stop=params.include_stop_str_in_output,
        )

    def push(self, output: Output) -> Delta:
        if output.finish_reason == "error" and (output.error or "").startswith(GRAMMAR_ERROR):
            why = (output.error or "").removeprefix(GRAMMAR_ERROR)
            constraint = self.submit.params.constraint
            kind = constraint.kind if constraint else "the constraint"
            raise RequestError(
                f"{kind} is too complex to go on with: {why}",
                param=kind,
                code="grammar_too_complex",
            )
        if output.finish_reason == "error":
            log.error("a sequence failed in the engine: %s", output.error)
            raise RequestError("The engine failed.", code="engine_error", status=500)
        delta = Delta(
            index=self.index,
            text="",
            tokens=output.tokens,
            logprobs=output.logprobs or [],
            prompt_logprobs=output.prompt_logprobs,
            cached_tokens=output.cached_tokens,
            finish_reason=output.finish_reason,
            matched=output.stop_token,
        )
        if self._prompt_only:
            delta.tokens, delta.logprobs, delta.matched = [], [], None
            delta.finish_reason = "length"
            return delta
        shown = output.tokens
        if output.stop_token is not None and not self._show_stop:
            shown = shown[:-1]
        if self._piecewise:
            self._find_stop(delta, shown)
        else:
            delta.text = self._detokenizer.push(shown)
        if delta.finish_reason is not None:
            delta.text += self._detokenizer.flush()
            if self._detokenizer.stopped is not None:
                delta.finish_reason, delta.matched = "stop", self._detokenizer.stopped
        return delta

    def _find_stop(self, delta: Delta, shown: list[int]) -> None:
        """Token by token, so that nothing after the one that completes a stop string counts.
        Stop strings are looked for in what follows the first min_tokens tokens."""
        for count, token in enumerate(shown, 1):
            delta.text += self._detokenizer.push([token])
            delta.ends.append(len(delta.text))
            if self._unwatched:
                self._unwatched -= 1
                if not self._unwatched:
                    self._detokenizer.watch(self.submit.params.stop)
            if self._detokenizer.stopped is not None:
                delta.tokens = delta.tokens[:count]
                delta.logprobs = delta.logprobs[:count]
                delta.finish_reason, delta.matched = "stop", self._detokenizer.stopped
                return


class Generator:
    """Turns requests into sequences of an engine, and their tokens into text.

    `draw(64)` gives 64 random bits, for requests without a seed.
    """

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        *,
        eos_ids: Iterable[int] = (),
        draw: Callable[[int], int] = secrets.randbits,
        grammars: Choices | None = None,
    ) -> None:
        self.client = client
        self.tokenizer = tokenizer
        self.eos_ids = frozenset(eos_ids) | tokenizer.eos_ids
        self._draw = draw
        self._pool = ThreadPoolExecutor(WORKERS, "tokenize")
        self._trials = Trials(lambda: vocabulary_of(tokenizer, client.info.vocab_size), grammars)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._trials.close()

    @property
    def context(self) -> int:
        """The longest sequence, prompt and output, that the engine can hold."""
        info = self.client.info
        return min(info.max_model_len, info.kv_tokens)

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self._check_chars(len(text))
        return await self._work(len(text), lambda: self.tokenizer.encode(text, add_special_tokens))

    async def encode_chat(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any
    ) -> list[int]:
        """Render the model's chat template and tokenize it."""
        size = sum(len(str(message.get("content") or "")) for message in messages)
        self._check_chars(size)
        return await self._work(
            size,
            lambda: self.tokenizer.encode_chat(
                messages, add_generation_prompt=add_generation_prompt, **kwargs
            ),
        )

    def _check_chars(self, size: int) -> None:
        limit = MAX_CHARS_PER_TOKEN * self.context
        if size > limit:
            raise RequestError(
                f"prompt has {size} characters, more than the {limit} that could fit",
                param="prompt",
                code="context_length_exceeded",
            )

    async def _work(self, size: int, call: Callable[[], Result]) -> Result:
        if size <= INLINE_CHARS:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def prepare(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        *,
        namespace: str = "",
        priority: int = 0,
        first_index: int = 0,
        shown: Mapping[int, str] | None = None,
        trace: bool = False,
    ) -> list[Sample]:
        """n Samples for each prompt, in order. RequestError names the parameter at fault.
        `shown` has texts for special tokens that a parser must see, `trace` fills Delta.ends."""
        prompt_only = params.max_tokens == 0
        if prompt_only:
            free: dict[str, Any] = {**dict.fromkeys(KINDS), "constrain_after": ""}
            params = msgspec.structs.replace(params, max_tokens=1, min_tokens=0, **free)
        params.verify(self.client.info.vocab_size)
        if len(prompts) * params.n > MAX_SEQUENCES:
            raise RequestError(
                f"n is {params.n}, with {len(prompts)} prompts more than {MAX_SEQUENCES} sequences",
                param="n",
            )
        stop_ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self.eos_ids
        samples: list[Sample] = []
        for prompt_index, prompt in enumerate(prompts):
            max_tokens = self._room(prompt, params, prompt_only)
            seed = self._draw(64) if params.seed is None else params.seed % 2**64
            for sample_index in range(params.n):
                submit = Submit(
                    request_id=uuid.uuid4().hex,
                    prompt=prompt,
                    params=params,
                    stop_ids=sorted(stop_ids),
                    max_tokens=max_tokens,
                    seed=seed,
                    sample_index=sample_index,
                    namespace=namespace,
                    priority=priority,
                )
                index = first_index + len(samples)
                samples.append(
                    Sample(index, prompt_index, submit, self.tokenizer, prompt_only, shown, trace)
                )
        return samples

    def _room(self, prompt: list[int], params: SamplingParams, prompt_only: bool) -> int:
        if not prompt:
            raise RequestError("prompt is empty: send at least one token", param="prompt")
        vocab_size = self.client.info.vocab_size
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < vocab_size:
                raise RequestError(
                    f"prompt has token id {token}, outside the vocabulary of {vocab_size}",
                    param="prompt",
                )
        context = self.context
        room = context - len(prompt)
        wanted = params.max_tokens
        if room < 1 or (wanted is not None and wanted > room):
            output = 0 if prompt_only else (wanted or 1)
            raise RequestError(
                f"This model's maximum context length is {context} tokens. However, you requested "
                f"{len(prompt) + output} tokens ({len(prompt)} in the prompt, {output} for the "
                "completion). Please shorten one of them.",
                param="prompt" if room < 1 else "max_tokens",
                code="context_length_exceeded",
            )
        if params.min_tokens > room:
            raise RequestError(
                f"min_tokens is {params.min_tokens}, more than the {room} that fit",
                param="min_tokens",
            )
        limit = room if wanted is None else wanted
        params.verify_wanted_size(len(prompt), limit)
        return limit

    async def check(self, params: SamplingParams) -> None:
        """RequestError for a constraint on the output that cannot be enforced. `stream` checks
        too; who asks first can still name the field as the client does."""
        params.verify_constraint()
        constraint = params.constraint
        if constraint is not None:
            await self._trials.compile(constraint)

    async def _compile(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            constraint = sample.submit.params.constraint
            if constraint is not None:
                sample.submit.grammar = await self._trials.compile(constraint)

    async def stream(self, samples: Sequence[Sample]) -> AsyncGenerator[Delta, None]:
        """Deltas of all samples as they come. Any failure aborts every sample; so does closing."""
        await self._compile(samples)
        if len(samples) == 1:
            async with aclosing(self._run(samples[0])) as deltas:
                async for delta in deltas:
                    yield delta
            return
        queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        tasks = [asyncio.create_task(self._pump(sample, queue)) for sample in samples]
        running = len(samples)
        try:
            while running:
                event = await queue.get()
                if isinstance(event, Exception):
                    raise event
                running -= event.finish_reason is not None
                yield event
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def complete(self, samples: Sequence[Sample]) -> list[Completion]:
        """Run all samples to their end; results in the order of `samples`."""
        done = {sample.index: Completion() for sample in samples}
        async with aclosing(self.stream(samples)) as deltas:
            async for delta in deltas:
                done[delta.index].add(delta)
        return [done[sample.index] for sample in samples]

    async def _pump(self, sample: Sample, queue: "asyncio.Queue[Delta | Exception]") -> None:
        try:
            async with aclosing(self._run(sample)) as deltas:
                async for delta in deltas:
                    queue.put_nowait(delta)
        except Exception as error:  # for whoever reads the queue
            queue.put_nowait(error)

    async def _run(self, sample: Sample) -> AsyncGenerator[Delta, None]:
        async with aclosing(self.client.generate(sample.submit)) as outputs:
            async for output in outputs:
                delta = sample.push(output)
                if delta.finish_reason is not None:
                    break
                yield delta
            else:
                return
        yield delta  # after the engine was told: a stop string ends its work at once


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's generation_config.json says of sampling, for requests that do not."""
    return {
        name: generation_config[name]
        for name in SAMPLING_DEFAULTS
        if isinstance(generation_config.get(name), int | float)
    }
