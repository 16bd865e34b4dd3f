"""POST /v1/completions."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import Response

from inferplane.errors import RequestError
from inferplane.generation import Completion, Delta, Sample
from inferplane.messages import TokenLogprobs
from inferplane.sampling_params import MAX_LOGPROBS
from inferplane.server import body
from inferplane.server.encode import json_response
from inferplane.server.logprobs import CompletionLogprobs, prompt_logprobs
from inferplane.server.open_requests import Owner
from inferplane.server.openai_fields import OpenAIFields
from inferplane.server.prompts import prompts_of
from inferplane.server.sampling import renamed
from inferplane.server.service import Service, Usage, namespace, new_id, openai_finish
from inferplane.server.shapes import Prompt
from inferplane.server.streaming import EventStream


class CompletionRequest(OpenAIFields):
    refused: ClassVar[tuple[str, ...]] = (*OpenAIFields.refused, "suffix")

    prompt: Prompt
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None

    def check(self) -> None:
        self.check_common()
        if self.suffix:
            raise RequestError(
                "'suffix' is not supported by this server yet: leave it out.",
                param="suffix",
                code="unsupported_parameter",
            )
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise RequestError(
                f"best_of is {self.best_of}, but only the value of n is supported.",
                param="best_of",
                code="unsupported_parameter",
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise RequestError(
                f"logprobs is {self.logprobs}, outside [0, {MAX_LOGPROBS}]",
                param="logprobs",
                code="invalid_value",
            )


async def completions(service: Service, request: Request) -> Response:
    asked = await body.read(request, CompletionRequest)
    service.check_model(asked.model)
    asked.check()
    chosen: dict[str, Any] = {"logprobs": asked.logprobs}
    if asked.echo and asked.logprobs is not None:
        chosen["prompt_logprobs"] = max(asked.logprobs, asked.prompt_logprobs or 0)
    constraint, names = asked.constraint(), dict[str, str]()
    if constraint is not None:
        chosen |= constraint[0].fields()
        names[constraint[0].kind] = constraint[1]
    with renamed(**names):
        params = asked.sampling_params(service.defaults, **chosen)
        await service.generator.check(params)
    special = asked.add_special_tokens is not False
    ids: list[list[int]] = []
    texts: list[str] = []
    generator = service.generator
    for prompt in prompts_of(asked.prompt, "prompt"):
        if isinstance(prompt, str):
            ids.append(await generator.encode(prompt, add_special_tokens=special))
            texts.append(prompt)
        else:
            ids.append(prompt)
            texts.append("")
    samples = generator.prepare(
        ids,
        params,
        namespace=namespace(request, asked.salt),
        priority=asked.priority or 0,
    )
    if asked.echo:  # not before the ids have been checked
        skip = asked.skip_special_tokens is not False
        decode = generator.tokenizer.decode
        texts = [t or decode(i, skip) for t, i in zip(texts, ids, strict=True)]
    answer = Answer(service, asked, samples, texts)
    answer.own(request)
    if asked.stream:
        return EventStream(request, answer.chunks())
    return await answer.whole(request)


class Answer:
    """One text completion, for one or more prompts, on its way out."""

    def __init__(
        self,
        service: Service,
        asked: CompletionRequest,
        samples: Sequence[Sample],
        texts: Sequence[str],
    ) -> None:
        self._service = service
        self._asked = asked
        self._samples = samples
        self._texts = texts
        self._usage = Usage(samples)
        self._tokenizer = service.generator.tokenizer
        self._logprobs = [CompletionLogprobs(self._tokenizer, asked.logprobs or 0) for _ in samples]
        self._owners: list[Owner] = []
        self._head: dict[str, Any] = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": int(service.now()),
            "model": asked.model or service.names[0],
        }

    def own(self, request: Request) -> None:
        """From now on it can be aborted."""
        self._owners = [self._asked.owner(request, self._head["id"])] * len(self._samples)

    async def whole(self, request: Request) -> Response:
        choices = []
        done = await self._service.complete(request, self._samples, self._owners)
        for sample, completion in zip(self._samples, done, strict=True):
            self._usage.add(sample.index, completion)
            choices.append(self._choice(sample.index, completion, first=True))
        return json_response({**self._head, "choices": choices, "usage": self._usage.body()})

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        opened: set[int] = set()
        async with aclosing(self._service.stream(self._samples, self._owners)) as deltas:
            async for delta in deltas:
                self._usage.add(delta.index, delta)
                first = delta.index not in opened
                opened.add(delta.index)
                choice = self._choice(delta.index, delta, first=first)
                if choice["text"] or delta.logprobs or delta.finish_reason is not None:
                    yield self._frame([choice], None)
        if self._asked.include_usage:
            yield self._frame([], self._usage.body())

    def _frame(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        frame = {**self._head, "choices": choices}
        if self._asked.include_usage:
            frame["usage"] = usage
        return frame

    def _choice(self, index: int, part: Delta | Completion, *, first: bool) -> dict[str, Any]:
        """`first` part of a choice: the echo goes before it."""
        sample = self._samples[index]
        echo = bool(self._asked.echo) and first
        choice: dict[str, Any] = {
            "index": index,
            "text": (self._texts[sample.prompt_index] if echo else "") + part.text,
            "logprobs": None,
            "finish_reason": openai_finish(part.finish_reason),
        }
        if part.finish_reason is not None:
            choice["matched_stop"] = part.matched
        if self._asked.logprobs is not None:
            choice["logprobs"] = self._take_logprobs(sample, part, echo)
        if part.prompt_logprobs is not None and self._asked.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(self._tokenizer, part.prompt_logprobs)
        return choice

    def _take_logprobs(
        self, sample: Sample, part: Delta | Completion, echo: bool
    ) -> dict[str, list[Any]]:
        tokens: list[TokenLogprobs | int] = []
        if echo:
            scored = part.prompt_logprobs or []
            tokens += [
                token if item is None else item
                for token, item in zip(sample.submit.prompt, scored, strict=True)
            ]
        tokens += part.logprobs
        shown = self._asked.skip_special_tokens is False
        hidden = frozenset[int]() if shown else self._tokenizer.special_ids
        return self._logprobs[sample.index].take(tokens, hidden)
