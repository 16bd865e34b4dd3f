"""POST /generate, the native endpoint: SGLang's fields. Its answers are in native_answer."""

from typing import Annotated, Any, ClassVar

import msgspec
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from inferplane.errors import RequestError
from inferplane.sampling_params import KINDS, MAX_LOGPROBS, SamplingParams
from inferplane.server import body
from inferplane.server.body import Schema
from inferplane.server.constraints import of_schema, of_structural_tag
from inferplane.server.native_answer import Answer, Wanted
from inferplane.server.openai_fields import PRIORITY_LIMIT, RequestId, ShortText, cache_salt
from inferplane.server.prompts import MAX_PROMPTS, prompts_of
from inferplane.server.sampling import (
    OneOrMany,
    Strings,
    TokenIds,
    bias_of,
    refuse_unsupported,
    renamed,
)
from inferplane.server.service import Service, namespace, new_id, tenant
from inferplane.server.shapes import Ids, Text, TokensOfEach
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
    "session_id",
    "mm_hashes",
    "mm_content_hashes",
    "modalities",
    "return_sampling_mask",
    "sampling_logprobs_mode",
    "return_routed_experts",
    "return_indexer_topk",
    "return_entropy",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "routed_dp_rank",
    "require_reasoning",
    "max_thinking_tokens",
    "multi_item_delimiter_indices",
    "kv_hints",
    "custom_labels",
)
UNSUPPORTED_SAMPLING = (
    "stop_regex",
    "custom_params",
    "beam_width",
    "watermark",
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
    "constrain_after",
)


class NativeSampling(Schema):
    """SGLang's sampling_params."""

    refused: ClassVar[tuple[str, ...]] = UNSUPPORTED_SAMPLING
    no_effect: ClassVar[tuple[str, ...]] = ("spaces_between_special_tokens",)

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
    constrain_after: str | None = None
    structural_tag: Any = None
    custom_params: Any = None
    beam_width: Any = None
    watermark: Any = None
    stream_interval: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None

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
    """Either `text` or `input_ids`; lists of them make a batch, for which `sampling_params`, `rid`
    and the logprob fields may be lists too.

    `log_metrics`, `no_logs`, `routing_key` and `conversation_id` ask nothing of a server that logs
    no prompts and has one engine, and have no effect.
    """

    refused: ClassVar[tuple[str, ...]] = UNSUPPORTED_FIELDS
    no_effect: ClassVar[tuple[str, ...]] = (
        "log_metrics",
        "no_logs",
        "routing_key",
        "conversation_id",
    )
    nested: ClassVar[dict[str, type[Schema]]] = {"sampling_params": NativeSampling}

    text: Text = None
    input_ids: Ids = None
    sampling_params: Any = None
    stream: bool | None = None
    incremental_streaming_output: bool | None = None
    return_logprob: OneOrMany[bool] | None = None
    logprob_start_len: OneOrMany[int] | None = None
    top_logprobs_num: OneOrMany[int] | None = None
    token_ids_logprob: TokensOfEach = None
    return_text_in_logprobs: bool | None = None
    return_prompt_token_ids: bool | None = None
    rid: OneOrMany[RequestId] | None = None
    model: str | None = None
    cache_salt: ShortText | None = None
    extra_key: ShortText | None = None
    priority: Annotated[int, Field(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)] | None = None
    log_metrics: bool | None = None
    no_logs: bool | None = None
    routing_key: ShortText | None = None
    conversation_id: ShortText | None = None
    input_embeds: Any = None
    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None
    lora_path: Any = None
    session_params: Any = None
    custom_logit_processor: Any = None
    return_hidden_states: Any = None
    session_id: Any = None
    mm_hashes: Any = None
    mm_content_hashes: Any = None
    modalities: Any = None
    return_sampling_mask: Any = None
    sampling_logprobs_mode: Any = None
    return_routed_experts: Any = None
    return_indexer_topk: Any = None
    return_entropy: Any = None
    bootstrap_host: Any = None
    bootstrap_port: Any = None
    bootstrap_room: Any = None
    routed_dp_rank: Any = None
    require_reasoning: Any = None
    max_thinking_tokens: Any = None
    multi_item_delimiter_indices: Any = None
    kv_hints: Any = None
    custom_labels: Any = None

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

    def wanted(self, count: int) -> list[Wanted]:
        """What each of `count` prompts wants to know beyond its text."""
        flags = self._each("return_logprob", False, count)
        starts = self._each("logprob_start_len", -1, count)
        tops = self._each("top_logprobs_num", 0, count)
        for name, low, high, values in (
            ("top_logprobs_num", 0, MAX_LOGPROBS, tops),
            ("logprob_start_len", -1, 2**31 - 1, starts),
        ):
            for value in values:
                if not low <= value <= high:
                    raise RequestError(
                        f"{name} is {value}, outside [{low}, {high}]",
                        param=name,
                        code="invalid_value",
                    )
        ids = self._named_tokens(count)
        names = [new_id("") for _ in range(count)]
        if self.rid is not None:
            names = self._each("rid", "", count) if count > 1 or len(self.rid) > 1 else self.rid
        return [
            Wanted(name, logprobs=flag, start=start, top=top, ids=some)
            for name, flag, start, top, some in zip(names, flags, starts, tops, ids, strict=True)
        ]

    def _named_tokens(self, count: int) -> list[list[int]]:
        """token_ids_logprob for each of `count` prompts: one id or one list of them is for all."""
        value = self.token_ids_logprob
        if value is None:
            return [[]] * count
        name = "token_ids_logprob"
        shared: Any = [value] if type(value) is int else value
        listed = isinstance(shared, list)
        lists: list[Any] = [shared] * count if listed and is_ids(shared) else shared
        if not listed or not all(one is None or is_ids(one) for one in lists):
            why = "must be a list of token ids, or a list of one for each prompt"
            raise RequestError(f"{name} {why}", param=name, code="invalid_type")
        each: list[list[int]] = [one or [] for one in lists]
        if len(each) != count:
            why = f"has {len(each)} entries for {count} prompts"
        elif not any(each):
            why = "names no token"
        elif any(token < 0 for ids in each for token in ids):
            why = "has a negative token id"
        else:
            return each
        raise RequestError(f"{name} {why}", param=name, code="invalid_value")

    def _each(self, name: str, default: Any, count: int) -> list[Any]:
        """The field for each of `count` prompts; one value is for all of them."""
        values = getattr(self, name)
        if values is None:
            return [default] * count
        if len(values) == 1:
            return list(values) * count
        if len(values) != count:
            raise RequestError(
                f"{name} has {len(values)} entries for {count} prompts",
                param=name,
                code="invalid_value",
            )
        return list(values)

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


def is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int for one in value)


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
    answer = await _prepared(service, request, asked)
    if asked.stream:
        return EventStream(request, answer.chunks())
    return await answer.whole(request)


async def _prepared(service: Service, request: Request, asked: GenerateRequest) -> Answer:
    field, value = asked.prompts
    prompts = prompts_of(value, field)
    salt = cache_salt(asked.cache_salt, asked.extra_key)
    names = {
        "prompt": field,
        "logprobs": "top_logprobs_num",
        "logprob_token_ids": "token_ids_logprob",
        **{name: f"sampling_params.{name}" for name in (*SAME, *KINDS)},
        **SPELLINGS,
    }
    answer = Answer(
        service,
        tenant(request),
        many=asked.is_batch,
        incremental=bool(asked.incremental_streaming_output),
        texts=bool(asked.return_text_in_logprobs),
        prompt_ids=bool(asked.return_prompt_token_ids),
    )
    wanted = asked.wanted(len(prompts))
    with renamed(**names):
        for i, sampling in enumerate(asked.sampling(len(prompts))):
            prompt = prompts[i]
            params = msgspec.structs.replace(
                sampling.params(dict(service.defaults)), **wanted[i].params()
            )
            await service.generator.check(params)
            ids = await service.generator.encode(prompt) if isinstance(prompt, str) else prompt
            samples = service.generator.prepare(
                [ids],
                params,
                namespace=namespace(request, salt),
                priority=asked.priority or 0,
                first_index=len(answer),
            )
            answer.add(samples, wanted[i], sampling.stream_interval or 1)
    return answer
