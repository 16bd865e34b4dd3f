"""The engine in process: a model, its tokenizer and a thread that runs them, as one object.

Text is handled by the same code as the server's (generation.py).
"""

import asyncio
import difflib
import logging
import threading
import types
import weakref
from collections import abc
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar, get_args, overload

import msgspec

from inferplane.background import Background
from inferplane.checkpoint.source import open_model
from inferplane.config import Config, settings
from inferplane.engine import open_engine
from inferplane.errors import ConfigError, RequestError
from inferplane.generation import Completion, Delta, Generator, Sample, sampling_defaults
from inferplane.grammar.compile import Choices
from inferplane.local_client import LocalClient
from inferplane.messages import ModelInfo, TokenLogprobs
from inferplane.plugins import Plugins
from inferplane.sampling_params import SamplingParams

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""a text, several texts, the token ids of one prompt, or those of several"""
Params = SamplingParams | dict[str, Any] | None
"""a dict names what differs from the model's defaults, a SamplingParams is taken as it is"""
Message = dict[str, Any]
Deltas = abc.Generator[Delta, None, None]
AsyncDeltas = AsyncGenerator[Delta, None]
Value = TypeVar("Value")

log = logging.getLogger(__name__)

MOST_OPEN = 512
"""sequences given to the scheduler at a time, well below its queue's bound"""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """One finished sequence: sample `sample_index` of prompt `prompt_index`.

    `matched` is the stop id or stop string that ended it, if any.
    """

    text: str
    token_ids: list[int]
    finish_reason: str | None
    matched: int | str | None
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[TokenLogprobs | None] | None
    usage: Usage
    prompt_index: int
    sample_index: int


class Engine:
    """A loaded model. Use as a context manager, or call `close`.

    Settings are the fields of inferplane.config.Config. Methods may be called from any thread;
    those that start with "a" are for callers with an event loop.
    """

    def __init__(
        self,
        model: str,
        *,
        plugins: Plugins | None = None,
        progress: Callable[[int, int], None] | None = None,
        report: Callable[[str], None] = log.info,
        **config: Any,
    ) -> None:
        """`progress` gets (bytes, all bytes) while weights are read, `report` a line a second about
        the rest of the start. Raises InferplaneError."""
        self.config = make_config(model, config)
        grammars = Choices(self.config.grammar_backend, self.config.json_whitespace)
        source = open_model(model, self.config.revision)
        self.tokenizer = source.tokenizer(self.config.chat_template)
        self._defaults = sampling_defaults(source.generation_config)
        self._background = Background("inferplane-engine")
        try:
            client = self._background.run(_open(self.config, source, plugins, progress, report))
        except BaseException:
            self._background.close()
            raise
        self.config = client.core.loaded.config
        self._client = client
        self.generator = Generator(client, self.tokenizer, grammars=grammars)
        self._close = weakref.finalize(self, _close, self._background, client, self.generator)

    @property
    def info(self) -> ModelInfo:
        return self.generator.client.info

    def flush_cache(self) -> None:
        """Forget the prompts that do not run at the moment."""

        async def flush() -> None:
            self._client.flush_cache()

        self.run(flush())

    def close(self) -> None:
        """Abort what runs and give the memory back. May be called twice."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @overload
    def generate(
        self, prompts: Prompts, params: Params = None, *, stream: Literal[False] = False
    ) -> list[Result]: ...

    @overload
    def generate(
        self, prompts: Prompts, params: Params = None, *, stream: Literal[True]
    ) -> Deltas: ...

    def generate(
        self, prompts: Prompts, params: Params = None, *, stream: bool = False
    ) -> list[Result] | Deltas:
        """Complete prompts: the n results of the first prompt, of the second, and so on; with
        `stream` the pieces of all of them as they come; closing that generator aborts them.
        RequestError says what is wrong."""
        listed, chosen = list_of(prompts), self.params(params)
        if stream:
            return self._background.iterate(self._stream(self._encode(listed), chosen))
        return self.run(self._complete(listed, chosen))

    async def agenerate(self, prompts: Prompts, params: Params = None) -> list[Result]:
        return await self._background.arun(self._complete(list_of(prompts), self.params(params)))

    def astream(self, prompts: Prompts, params: Params = None) -> AsyncDeltas:
        """Like generate(stream=True)."""
        ids = self._encode(list_of(prompts))
        return self._background.aiterate(self._stream(ids, self.params(params)))

    @overload
    def chat(
        self,
        messages: list[Message],
        params: Params = None,
        *,
        stream: Literal[False] = False,
        **template: Any,
    ) -> list[Result]: ...

    @overload
    def chat(
        self,
        messages: list[Message],
        params: Params = None,
        *,
        stream: Literal[True],
        **template: Any,
    ) -> Deltas: ...

    def chat(
        self,
        messages: list[Message],
        params: Params = None,
        *,
        stream: bool = False,
        **template: Any,
    ) -> list[Result] | Deltas:
        """Answer a conversation: n results, or their pieces. `template` are variables of the
        model's chat template, such as `tools`."""
        chosen, ids = self.params(params), self._encode_chat(messages, template)
        if stream:
            return self._background.iterate(self._stream(ids, chosen))
        return self.run(self._finish(ids, chosen))

    async def achat(
        self, messages: list[Message], params: Params = None, **template: Any
    ) -> list[Result]:
        ids = self._encode_chat(messages, template)
        return await self._background.arun(self._finish(ids, self.params(params)))

    def astream_chat(
        self, messages: list[Message], params: Params = None, **template: Any
    ) -> AsyncDeltas:
        """Like chat(stream=True)."""
        ids = self._encode_chat(messages, template)
        return self._background.aiterate(self._stream(ids, self.params(params)))

    def run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Run a coroutine on the engine's event loop, where `generator` may be used directly."""
        return self._background.run(coroutine)

    def params(self, params: Params) -> SamplingParams:
        """What a caller's sampling parameters mean for this model."""
        if isinstance(params, SamplingParams):
            return params
        return params_from({**self._defaults, **(params or {})})

    async def _encode(self, prompts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        encode = self.generator.encode
        return [await encode(p) if isinstance(p, str) else list(p) for p in prompts]

    async def _encode_chat(
        self, messages: list[Message], template: dict[str, Any]
    ) -> list[list[int]]:
        return [await self.generator.encode_chat(messages, **template)]

    async def _stream(
        self, ids: Coroutine[Any, Any, list[list[int]]], params: SamplingParams
    ) -> AsyncDeltas:
        samples = self.generator.prepare(await ids, params)
        async with aclosing(self.generator.stream(samples)) as deltas:
            async for delta in deltas:
                yield delta

    async def _finish(
        self, ids: Coroutine[Any, Any, list[list[int]]], params: SamplingParams
    ) -> list[Result]:
        return await self._finish_one(0, (await ids)[0], params)

    async def _complete(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams
    ) -> list[Result]:
        """Any number of prompts: only so many are open at a time. The first failure ends all."""
        most = max(1, min(MOST_OPEN, self.config.max_queue) // max(1, params.n))
        room = asyncio.Semaphore(most)

        async def one(index: int, prompt: str | Sequence[int]) -> list[Result]:
            async with room:
                (ids,) = await self._encode([prompt])
                return await self._finish_one(index, ids, params)

        tasks = [asyncio.create_task(one(i, prompt)) for i, prompt in enumerate(prompts)]
        try:
            return [result for some in await asyncio.gather(*tasks) for result in some]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _finish_one(self, index: int, ids: list[int], params: SamplingParams) -> list[Result]:
        samples = self.generator.prepare([ids], params)
        done = await self.generator.complete(samples)
        return [_result(index, s, c) for s, c in zip(samples, done, strict=True)]


def make_config(model: str, values: dict[str, Any]) -> Config:
    """Config from keyword arguments; ConfigError for names and types that it does not have."""
    known = {item.name: item for item in settings()}
    for name, value in values.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "see docs/configuration.md"
            raise ConfigError(f"there is no setting {name!r}: {hint}")
        annotation: Any = known[name].type
        accepted = get_args(annotation) if isinstance(annotation, types.UnionType) else ()
        kinds = [getattr(kind, "__origin__", kind) for kind in accepted or (annotation,)]
        if float in kinds:
            kinds.append(int)
        if type(value) not in kinds:
            names = " or ".join("None" if k is types.NoneType else k.__name__ for k in kinds)
            raise ConfigError(f"{name} is {value!r}, must be of type {names}")
    return Config(model=model, **values)


def params_from(values: dict[str, Any]) -> SamplingParams:
    """SamplingParams from a dict; RequestError for unknown names and wrong types."""
    known = SamplingParams.__struct_fields__
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise RequestError(f"there is no sampling parameter {name!r}: {hint}", param=name)
    try:
        return msgspec.convert(values, SamplingParams)
    except msgspec.ValidationError as error:
        raise RequestError(f"sampling parameters: {error}") from None


def list_of(prompts: Prompts) -> list[str | Sequence[int]]:
    """Several prompts from one or several."""
    if isinstance(prompts, str):
        return [prompts]
    listed: list[Any] = list(prompts)
    if listed and all(type(token) is int for token in listed):
        return [listed]
    for index, prompt in enumerate(listed):
        ids = isinstance(prompt, Sequence) and all(type(token) is int for token in prompt)
        if not isinstance(prompt, str) and not ids:
            raise RequestError(
                f"prompt {index} is {prompt!r:.60}, must be a text or a list of token ids",
                param="prompts",
            )
    return listed


async def _open(
    config: Config, source: Any, plugins: Plugins | None, progress: Any, report: Any
) -> LocalClient:
    core = open_engine(config, source, plugins, progress, report, source.tokenizer)
    return LocalClient(core)


def _close(background: Background, client: LocalClient, generator: Generator) -> None:
    if background.is_current:  # the garbage collector may run anywhere
        threading.Thread(target=_close, args=(background, client, generator)).start()
        return
    background.run(client.close())
    background.close()
    generator.close()


def _result(prompt_index: int, sample: Sample, done: Completion) -> Result:
    return Result(
        text=done.text,
        token_ids=done.tokens,
        finish_reason=done.finish_reason,
        matched=done.matched,
        logprobs=done.logprobs,
        prompt_logprobs=done.prompt_logprobs,
        usage=Usage(len(sample.submit.prompt), len(done.tokens), done.cached_tokens),
        prompt_index=prompt_index,
        sample_index=sample.submit.sample_index,
    )
