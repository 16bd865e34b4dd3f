"""POST /generate, the native endpoint: SGLang's names and shapes, cumulative text in a stream."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from inferplane.errors import RequestError
from inferplane.generation import Completion, Sample
from inferplane.messages import TokenLogprobs
from inferplane.sampling_params import KINDS, MAX_LOGPROBS, SamplingParams
from inferplane.server import body
from inferplane.server.body import Schema
from inferplane.server.constraints import of_schema, of_structural_tag
from inferplane.server.encode import json_response
from inferplane.server.logprobs import finite
from inferplane.server.openai_fields import PRIORITY_LIMIT, ShortText
from inferplane.server.prompts import MAX_PROMPTS, prompts_of
from inferplane.server.sampling import Strings, TokenIds, bias_of, refuse_unsupported, renamed
from inferplane.server.service import Service, namespace, new_id
from inferplane.server.streaming import EventStream

DEFAULT_MAX_NEW_TOKENS = 128

UNSUPPORTED_FIELDS = (
    "input_embeds",
    "image_data",
    "video_data",
    "audio_data",
    "lora_path",
    "session_params",
    "custom_logit_processor",
    "return_hidden_states",
    "token_ids_logprob",
)
UNSUPPORTED_SAMPLING = (
    "stop_regex",
    "custom_params",
)
SPELLINGS = {
    "max_tokens": "sampling_params.max_new_tokens",
    "min_tokens": "sampling_params.min_new_tokens",
    "seed": "sampling_params.sampling_seed",
    "include_stop_str_in_output": "sampling_params.no_stop_trim",
}
"""our name -> SGLang's"""
SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "n",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "logit_bias",
    "regex",
    "ebnf",
)


class NativeSampling(Schema):
    """SGLang's sampling_params."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    n: int | None = None
    stop: Strings | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    sampling_seed: int | None = None
    logit_bias: dict[str, float] | None = None
    stop_regex: Any = None
    json_schema: Any = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: Any = None
    custom_params: Any = None

    def params(self, defaults: dict[str, Any]) -> SamplingParams:
        pairs = [(name, name) for name in SAME]
        pairs += [(ours, path.partition(".")[2]) for ours, path in SPELLINGS.items()]
        said = {
            ours: value for ours, theirs in pairs if (value := getattr(self, theirs)) is not None
        }
        if "logit_bias" in said:
            said["logit_bias"] = bias_of(said["logit_bias"])
        if self.json_schema is not None:
            said["json_schema"] = of_schema(self.json_schema, "json_schema").text
        if self.structural_tag is not None:
            said["structural_tag"] = of_structural_tag(self.structural_tag, "structural_tag").text
        said.setdefault("max_tokens", DEFAULT_MAX_NEW_TOKENS)
        return msgspec.structs.replace(SamplingParams(), **{**defaults, **said})


class GenerateRequest(Schema):
    """Either `text` or `input_ids`; lists of them make a batch, for which `sampling_params` may be
    a list too."""

    text: Any = None
    input_ids: Any = None
    sampling_params: Any = None
    stream: bool | None = None
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    return_text_in_logprobs: bool | None = None
    rid: Annotated[str, Field(pattern=r"\A[A-Za-z0-9._-]{1,64}\z")] | None = None
    model: str | None = None
    cache_salt: ShortText | None = None
    extra_key: ShortText | None = None
    priority: Annotated[int, Field(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)] | None = None
    input_embeds: Any = None
    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None
    lora_path: Any = None
    session_params: Any = None
    custom_logit_processor: Any = None
    return_hidden_states: Any = None
    token_ids_logprob: Any = None

    def check(self) -> None:
        for name in UNSUPPORTED_FIELDS:
            if getattr(self, name) is False:
                setattr(self, name, None)
        refuse_unsupported(self, UNSUPPORTED_FIELDS)
        if (self.text is None) == (self.input_ids is None):
            missing = self.text is None
            raise RequestError(
                "send either 'text' or 'input_ids'" + ("." if missing else ", not both."),
                param="text" if missing else "input_ids",
                code="missing_required_parameter" if missing else "invalid_value",
            )
        limits = {"top_logprobs_num": (0, MAX_LOGPROBS), "logprob_start_len": (-1, 2**31 - 1)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestError(
                    f"{name} is {value}, outside [{low}, {high}]",
                    param=name,
                    code="invalid_value",
                )

    @property
    def prompts(self) -> tuple[str, Any]:
        """(name of the field that has the prompts, its value)"""
        return ("text", self.text) if self.input_ids is None else ("input_ids", self.input_ids)

    @property
    def is_batch(self) -> bool:
        _field, value = self.prompts
        single = isinstance(value, str) or (bool(value) and type(value[0]) is int)
        return not single

    def sampling(self, count: int) -> list[NativeSampling]:
        """One for each of `count` prompts."""
        value = {} if self.sampling_params is None else self.sampling_params
        if isinstance(value, list):
            if len(value) != count or len(value) > MAX_PROMPTS:
                raise RequestError(
                    f"sampling_params has {len(value)} entries for {count} prompts",
                    param="sampling_params",
                    code="invalid_value",
                )
            return [_sampling(one) for one in value]
        return [_sampling(value)] * count


def _sampling(value: Any) -> NativeSampling:
    if not isinstance(value, dict):
        raise RequestError(
            "'sampling_params' must be an object, or a list of one for each prompt.",
            param="sampling_params",
            code="invalid_type",
        )
    try:
        sampling = body.parse(NativeSampling, value)
        refuse_unsupported(sampling, UNSUPPORTED_SAMPLING)
        return sampling
    except RequestError as error:
        raise RequestError(
            error.message, param=f"sampling_params.{error.param}", code=error.code
        ) from None


async def generate(service: Service, request: Request) -> Response:
    asked = await body.read(request, GenerateRequest)
    service.check_model(asked.model)
    asked.check()
    samples = await _samples(service, request, asked)
    answer = Answer(service, asked, samples)
    if asked.stream:
        return EventStream(request, answer.chunks())
    return await answer.whole(request)


async def _samples(service: Service, request: Request, asked: GenerateRequest) -> list[Sample]:
    field, value = asked.prompts
    prompts = prompts_of(value, field)
    salt = f"{asked.cache_salt or ''}\0{asked.extra_key or ''}".strip("\0")
    chosen: dict[str, Any] = {}
    if asked.return_logprob:
        chosen["logprobs"] = asked.top_logprobs_num or 0
        if asked.logprob_start_len not in (None, -1):
            chosen["prompt_logprobs"] = asked.top_logprobs_num or 0
            chosen["prompt_logprobs_start"] = asked.logprob_start_len + 1
    spelled = {name: f"sampling_params.{name}" for name in (*SAME, *KINDS)}
    names = {"prompt": field, **spelled, **SPELLINGS}
    samples: list[Sample] = []
    with renamed(**names):
        for prompt, sampling in zip(prompts, asked.sampling(len(prompts)), strict=True):
            params = sampling.params(dict(service.defaults))
            await service.generator.check(params)
            ids = await service.generator.encode(prompt) if isinstance(prompt, str) else prompt
            samples += service.generator.prepare(
                [ids],
                msgspec.structs.replace(params, **chosen),
                namespace=namespace(request, salt),
                priority=asked.priority or 0,
                first_index=len(samples),
            )
    return samples


class Answer:
    """One or more native results on their way out."""

    def __init__(self, service: Service, asked: GenerateRequest, samples: Sequence[Sample]) -> None:
        self._service = service
        self._asked = asked
        self._samples = samples
        self._tokenizer = service.generator.tokenizer
        self._started = service.clock()
        self._ids = [new_id("") for _ in samples]
        if asked.rid is not None and len(samples) == 1:
            self._ids = [asked.rid]
        self._many = asked.is_batch or len(samples) > 1

    async def whole(self, request: Request) -> Response:
        done = await self._service.complete(request, self._samples)
        results = [self._result(i, completion) for i, completion in enumerate(done)]
        return json_response(results if self._many else results[0])

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        so_far = [Completion() for _ in self._samples]
        async with aclosing(self._service.stream(self._samples)) as deltas:
            async for delta in deltas:
                so_far[delta.index].add(delta)
                result = self._result(delta.index, so_far[delta.index])
                if self._many:
                    result["index"] = delta.index
                yield result

    def _result(self, index: int, part: Completion) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "id": self._ids[index],
            "finish_reason": _finish(part),
            "prompt_tokens": len(self._samples[index].submit.prompt),
            "completion_tokens": len(part.tokens),
            "cached_tokens": part.cached_tokens,
            "e2e_latency": self._service.clock() - self._started,
        }
        if self._asked.return_logprob:
            self._add_logprobs(meta, index, part)
        return {"text": part.text, "output_ids": part.tokens, "meta_info": meta}

    def _add_logprobs(self, meta: dict[str, Any], index: int, part: Completion) -> None:
        start = self._asked.logprob_start_len
        prompt = self._samples[index].submit.prompt
        scored: list[TokenLogprobs | None] = []
        if start is not None and start >= 0:
            scored = (part.prompt_logprobs or [])[start:]
        # SGLang scores from the start on: the first token there has nothing before it
        inputs = [
            self._entry(None if i == 0 or item is None else item.logprob, token)
            for i, (item, token) in enumerate(zip(scored, prompt[start or 0 :], strict=False))
        ]
        meta["input_token_logprobs"] = inputs
        meta["output_token_logprobs"] = [self._entry(i.logprob, i.token) for i in part.logprobs]
        if self._asked.top_logprobs_num:
            meta["input_top_logprobs"] = [
                None if i == 0 or item is None else self._top(item) for i, item in enumerate(scored)
            ]
            meta["output_top_logprobs"] = [self._top(item) for item in part.logprobs]

    def _top(self, item: TokenLogprobs) -> list[list[Any]]:
        top = item.top[: self._asked.top_logprobs_num]
        return [self._entry(logprob, token) for token, logprob in top]

    def _entry(self, logprob: float | None, token: int) -> list[Any]:
        text = self._tokenizer.token_text(token) if self._asked.return_text_in_logprobs else None
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
            return {"type": "abort", "message": "The sequence was aborted."}
