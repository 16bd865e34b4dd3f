"""Results of POST /generate in SGLang's shape: one object a sequence, with `meta_info`."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from inferplane.generation import Completion, Sample
from inferplane.messages import TokenLogprobs
from inferplane.server.encode import json_response
from inferplane.server.logprobs import finite
from inferplane.server.service import Service
from inferplane.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Wanted:
    """What one prompt of the request wants to know. `name` is what the client calls it, `start`
    the first position of the prompt to score, -1 for none, `top` how many alternatives, `ids` the
    tokens to score besides, wherever one is scored."""

    name: str
    logprobs: bool
    start: int
    top: int
    ids: list[int]

    def params(self) -> dict[str, Any]:
        """The sampling parameters that this takes."""
        if not self.logprobs:
            return {}
        scored = {}
        if self.start >= 0:
            scored = {"prompt_logprobs": self.top, "prompt_logprobs_start": self.start + 1}
        return {"logprobs": self.top, "logprob_token_ids": self.ids, **scored}


@dataclass
class _Running:
    """One sequence; `sent` tokens and characters have gone out."""

    sample: Sample
    wanted: Wanted
    interval: int
    done: Completion
    sent_tokens: int = 0
    sent_chars: int = 0


class Answer:
    """The results of one request, which may have several prompts and samples.

    `incremental` chunks of a stream have only what is new; otherwise each has all so far.
    """

    def __init__(
        self,
        service: Service,
        tenant: str,
        *,
        many: bool,
        incremental: bool,
        texts: bool,
        prompt_ids: bool,
    ) -> None:
        self._service = service
        self._tenant = tenant
        self._tokenizer = service.generator.tokenizer
        self._many = many
        self._incremental = incremental
        self._texts = texts
        self._prompt_ids = prompt_ids
        self._started = service.clock()
        self._sequences: list[_Running] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, samples: Sequence[Sample], wanted: Wanted, interval: int) -> None:
        """The samples of one prompt, of which a stream shows every `interval` tokens."""
        self._sequences += [_Running(s, wanted, interval, Completion()) for s in samples]
        self._many = self._many or len(samples) > 1

    @property
    def _samples(self) -> list[Sample]:
        return [sequence.sample for sequence in self._sequences]

    def _owners(self) -> list[tuple[str, str]]:
        return [(self._tenant, sequence.wanted.name) for sequence in self._sequences]

    async def whole(self, request: Request) -> Response:
        done = await self._service.complete(request, self._samples, self._owners())
        for sequence, completion in zip(self._sequences, done, strict=True):
            sequence.done = completion
        results = [self._result(sequence) for sequence in self._sequences]
        return json_response(results if self._many else results[0])

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        deltas = self._service.stream(self._samples, self._owners())
        async with aclosing(deltas):
            async for delta in deltas:
                sequence = self._sequences[delta.index]
                sequence.done.add(delta)
                new = len(sequence.done.tokens) - sequence.sent_tokens
                if delta.finish_reason is None and new < sequence.interval:
                    continue
                result = self._result(sequence)
                if self._many:
                    result["index"] = delta.index
                if self._incremental:
                    sequence.sent_tokens = len(sequence.done.tokens)
                    sequence.sent_chars = len(sequence.done.text)
                elif sequence.interval > 1:
                    sequence.sent_tokens = len(sequence.done.tokens)
                yield result

    def _result(self, sequence: _Running) -> dict[str, Any]:
        done, prompt = sequence.done, sequence.sample.submit.prompt
        first = sequence.sent_tokens if self._incremental else 0
        meta: dict[str, Any] = {
            "id": sequence.wanted.name,
            "finish_reason": _finish(done),
            "prompt_tokens": len(prompt),
            "completion_tokens": len(done.tokens),
            "cached_tokens": done.cached_tokens,
            "e2e_latency": self._service.clock() - self._started,
        }
        if sequence.wanted.logprobs:
            meta |= Scores(self._tokenizer, sequence.wanted, self._texts).meta(prompt, done, first)
        result = {
            "text": done.text[sequence.sent_chars :],
            "output_ids": done.tokens[first:],
            "meta_info": meta,
        }
        if self._prompt_ids:
            result["prompt_token_ids"] = prompt
        return result


@dataclass(frozen=True)
class Scores:
    """Logprobs as [logprob, token id, text or null]."""

    tokenizer: Tokenizer
    wanted: Wanted
    texts: bool

    def meta(self, prompt: list[int], done: Completion, first: int) -> dict[str, Any]:
        """The fields of meta_info; those of the output from its token `first` on."""
        start = self.wanted.start
        scored = (done.prompt_logprobs or [])[start:] if start >= 0 else []
        # SGLang scores from the start on: the first token there has nothing before it
        inputs = [
            self._entry(None if i == 0 or item is None else item.logprob, token)
            for i, (item, token) in enumerate(zip(scored, prompt[max(start, 0) :], strict=False))
        ]
        outputs = done.logprobs[first:]
        meta: dict[str, Any] = {
            "input_token_logprobs": inputs,
            "input_token_logprobs_length": len(inputs),
            "output_token_logprobs": [self._entry(i.logprob, i.token) for i in outputs],
            "output_token_logprobs_length": len(done.logprobs),
        }
        if self.wanted.top:
            meta["input_top_logprobs"] = [
                None if i == 0 or item is None else self._top(item) for i, item in enumerate(scored)
            ]
            meta["output_top_logprobs"] = [self._top(item) for item in outputs]
        if self.wanted.ids:
            meta["input_token_ids_logprobs"] = [
                None if i == 0 or item is None else self._named(item)
                for i, item in enumerate(scored)
            ]
            meta["output_token_ids_logprobs"] = [self._named(item) for item in outputs]
        return meta

    def _named(self, item: TokenLogprobs) -> list[list[Any]]:
        pairs = zip(self.wanted.ids, item.wanted, strict=True)
        return [self._entry(logprob, token) for token, logprob in pairs]

    def _top(self, item: TokenLogprobs) -> list[list[Any]]:
        return [self._entry(logprob, token) for token, logprob in item.top[: self.wanted.top]]

    def _entry(self, logprob: float | None, token: int) -> list[Any]:
        text = self.tokenizer.token_text(token) if self.texts else None
        return [None if logprob is None else finite(logprob), token, text]


def _finish(part: Completion) -> dict[str, Any] | None:
    match part.finish_reason:
        case None:
            return None
        case "stop":
            return {"type": "stop", "matched": part.matched}
        case "length":
            return {"type": "length", "length": len(part.tokens)}
        case _:
            message = "The sequence was aborted."
            return {"type": "abort", "message": message, "status_code": None}
