"""Programs on an inferplane.Engine in this process.

Prompts go to the engine as token ids of the whole text, so that what a state has said tokenizes as
if it had been written at once. States with a common beginning share its tokens up to the word at
the seam, and so its pages in the prefix cache.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec

from inferplane.errors import ProgramError
from inferplane.generation import Delta
from inferplane.lang.backend import Answer, TokenUsage, common_length
from inferplane.lang.choices import ChoicesMethod, Scored, Tokens
from inferplane.lang.sampling import Sampling
from inferplane.lang.transcript import Transcript
from inferplane.messages import TokenLogprobs

if TYPE_CHECKING:
    from inferplane.offline import Engine, Result

NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
"""SGLang's name -> ours, where they differ"""
LOGPROB_FIELDS = (
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "return_text_in_logprobs",
)


class EngineBackend:
    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.token_usage = TokenUsage()

    @property
    def keeps_tokens(self) -> bool:
        return True

    def text(self, transcript: Transcript) -> str:
        return transcript.render(self._template)[0]

    def generate(self, transcript: Transcript, sampling: Sampling) -> list[Answer]:
        ids = self._ids(transcript)
        results = self._run([ids], _params(sampling))
        return [Answer(result.text, self._meta(ids, result, sampling)) for result in results]

    def stream(self, transcript: Transcript, sampling: Sampling) -> Generator[Answer, None, None]:
        ids = self._ids(transcript)
        parts: list[Delta] = []
        deltas = self.engine.generate([ids], _params(sampling), stream=True)
        with closing(deltas):
            for delta in deltas:
                parts.append(delta)
                last = delta.finish_reason is not None
                yield Answer(delta.text, self._stream_meta(ids, parts, sampling) if last else {})

    def select(
        self, transcript: Transcript, choices: Sequence[str], method: ChoicesMethod
    ) -> Answer:
        """Each choice's tokens are scored from the first on that is not also the prompt's: the
        last of the prompt may become another one where a choice follows it."""
        prompt, templated = transcript.render(self._template)
        own = self._encode(prompt, templated)
        whole = [self._encode(prompt + choice, templated) for choice in choices]
        start = common_length([own, *whole])
        if start == 0:
            raise ProgramError("select needs text before it: the first token has no probability")
        if min(map(len, whole)) <= start:  # a choice that is all of another's token
            start = max(1, min(map(len, whole)) - 1)
        if len(choices) > 1:
            self._run([own[:start]], {"max_tokens": 0})
        scored = {"max_tokens": 0, "prompt_logprobs": 0, "prompt_logprobs_start": start}
        results = self._run(whole, scored)
        tokens = [self._scored(result, start) for result in results]
        alone: list[Tokens] = []
        if method.unconditional:
            alone = self._alone([ids[start:] for ids in whole])
        best, meta = method.decide(tokens, alone)
        meta["prompt_tokens"] = len(own)
        meta["cached_tokens"] = sum(result.usage.cached_tokens for result in results)
        return Answer(choices[best], meta)

    def prefill(self, transcript: Transcript) -> None:
        ids = self._ids(transcript)
        if ids:
            self._run([ids], {"max_tokens": 0})

    def flush_cache(self) -> None:
        self.engine.flush_cache()

    def get_server_info(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self.engine.info)

    def _template(self, messages: list[dict[str, Any]], answer: bool) -> str:
        return self.engine.tokenizer.render_chat(messages, add_generation_prompt=answer)

    def _ids(self, transcript: Transcript) -> list[int]:
        return self._encode(*transcript.render(self._template))

    def _encode(self, text: str, templated: bool) -> list[int]:
        encode = self.engine.generator.encode
        return self.engine.run(encode(text, add_special_tokens=not templated))

    def _run(self, prompts: list[list[int]], params: dict[str, Any]) -> "list[Result]":
        results = self.engine.generate(prompts, params)
        for usage in [result.usage for result in results]:
            self.token_usage.add(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        return results

    def _alone(self, suffixes: list[list[int]]) -> list[Tokens]:
        """The tokens scored without the prompt. A model without a token for the beginning of a
        text knows nothing of the first."""
        bos = self.engine.tokenizer.bos_id
        head = [] if bos is None else [bos]
        scored = {"max_tokens": 0, "prompt_logprobs": 0}
        results = self._run([head + ids for ids in suffixes], scored)
        if head:
            return [self._scored(result, 1) for result in results]
        return [
            [Scored(None, ids[0]), *self._scored(result, 1)]
            for ids, result in zip(suffixes, results, strict=True)
        ]

    def _scored(self, result: "Result", start: int) -> list[Scored]:
        items = (result.prompt_logprobs or [])[start:]
        text = self.engine.tokenizer.token_text
        return [Scored(i.logprob, i.token, text(i.token)) for i in items if i is not None]

    def _meta(self, ids: list[int], result: "Result", sampling: Sampling) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "finish_reason": _finish(result.finish_reason, result.matched, len(result.token_ids)),
            "prompt_tokens": len(ids),
            "completion_tokens": len(result.token_ids),
            "cached_tokens": result.usage.cached_tokens,
        }
        self._add_logprobs(meta, ids, sampling, result.logprobs, result.prompt_logprobs)
        return meta

    def _stream_meta(
        self, ids: list[int], parts: list[Delta], sampling: Sampling
    ) -> dict[str, Any]:
        count = sum(len(part.tokens) for part in parts)
        last = parts[-1]
        meta: dict[str, Any] = {
            "finish_reason": _finish(last.finish_reason, last.matched, count),
            "prompt_tokens": len(ids),
            "completion_tokens": count,
            "cached_tokens": last.cached_tokens,
        }
        self.token_usage.add(len(ids), last.cached_tokens, count)
        logprobs = [item for part in parts for item in part.logprobs]
        self._add_logprobs(meta, ids, sampling, logprobs, parts[0].prompt_logprobs)
        return meta

    def _add_logprobs(
        self,
        meta: dict[str, Any],
        ids: list[int],
        sampling: Sampling,
        output: list[TokenLogprobs],
        prompt: list[TokenLogprobs | None] | None,
    ) -> None:
        """In SGLang's form: (logprob, token id, text or None); of the first token no logprob."""
        if not sampling.return_logprob:
            return

        def entry(logprob: float | None, token: int) -> list[Any]:
            text = self.engine.tokenizer.token_text
            return [logprob, token, text(token) if sampling.return_text_in_logprobs else None]

        def top(item: TokenLogprobs | None) -> list[list[Any]] | None:
            return None if item is None else [entry(logprob, t) for t, logprob in item.top]

        start = max(0, sampling.logprob_start_len or 0)
        inputs = list(zip(prompt or [], ids, strict=False))[start:]
        meta["input_token_logprobs"] = [
            entry(None if item is None else item.logprob, token) for item, token in inputs
        ]
        meta["output_token_logprobs"] = [entry(item.logprob, item.token) for item in output]
        if sampling.top_logprobs_num:
            meta["input_top_logprobs"] = [top(item) for item, _ in inputs]
            meta["output_top_logprobs"] = [top(item) for item in output]


def _params(sampling: Sampling) -> dict[str, Any]:
    """The engine's names."""
    said = sampling.said()
    values = {NAMES.get(k, k): v for k, v in said.items() if k not in LOGPROB_FIELDS}
    for name in ("stop", "stop_token_ids"):
        if name in values:
            values[name] = list(values[name])
    if sampling.return_logprob:
        top = sampling.top_logprobs_num or 0
        values["logprobs"] = top
        if sampling.logprob_start_len is not None and sampling.logprob_start_len >= 0:
            values["prompt_logprobs"] = top
            values["prompt_logprobs_start"] = sampling.logprob_start_len + 1
    return values


def _finish(reason: str | None, matched: int | str | None, count: int) -> dict[str, Any]:
    if reason == "length":
        return {"type": "length", "length": count}
    return {"type": reason, "matched": matched}
