"""What /v1/chat/completions and /v1/completions have in common."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from starlette.requests import Request

from inferplane.errors import RequestError
from inferplane.server.body import Schema
from inferplane.server.constraints import ConstraintFields
from inferplane.server.open_requests import Owner
from inferplane.server.sampling import SamplingFields, refuse_unsupported
from inferplane.server.service import tenant

PRIORITY_LIMIT = 2**31 - 1

ShortText = Annotated[str, Field(max_length=512)]
RequestId = Annotated[str, Field(pattern="^[A-Za-z0-9._-]{1,64}$")]
"""what a client calls its request, for /abort_request"""


SGLANG_UNSUPPORTED = (
    "stop_regex",
    "continue_final_message",
    "return_hidden_states",
    "return_meta_info",
    "return_prompt_token_ids",
    "sglext",
    "custom_params",
    "custom_logit_processor",
    "lora_path",
    "watermark",
    "moderation",
    "prompt_cache_options",
    "prompt_cache_retention",
)


class StreamOptions(Schema):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


def cache_salt(*parts: str | None) -> str:
    return "\0".join(part or "" for part in parts).strip("\0")


class OpenAIFields(ConstraintFields, SamplingFields):
    """`user`, `metadata`, `safety_identifier`, `prompt_cache_key`, `service_tier` auto and `store`
    false ask nothing of a server that keeps nothing, and have no effect."""

    refused: ClassVar[tuple[str, ...]] = SGLANG_UNSUPPORTED
    no_effect: ClassVar[tuple[str, ...]] = (
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "service_tier",
        "store",
    )

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: ShortText | None = None
    metadata: Annotated[dict[str, ShortText], Field(max_length=16)] | None = None
    safety_identifier: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_key: ShortText | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: bool | None = None
    cache_salt: ShortText | None = None
    extra_key: ShortText | None = None
    rid: RequestId | None = None
    no_stop_trim: bool | None = None
    stop_regex: Any = None
    continue_final_message: Any = None
    return_hidden_states: Any = None
    return_meta_info: Any = None
    return_prompt_token_ids: Any = None
    sglext: Any = None
    custom_params: Any = None
    custom_logit_processor: Any = None
    lora_path: Any = None
    watermark: Any = None
    moderation: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    priority: Annotated[int, Field(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)] | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def salt(self) -> str:
        """`cache_salt` and `extra_key`, SGLang's name for such a thing."""
        return cache_salt(self.cache_salt, self.extra_key)

    def owner(self, request: Request, identity: str) -> Owner:
        """Who may abort this request under which name: the client's, or else ours."""
        return tenant(request), self.rid or identity

    def check_common(self) -> None:
        for name in SGLANG_UNSUPPORTED:
            if getattr(self, name) is False:
                setattr(self, name, None)
        refuse_unsupported(self, SGLANG_UNSUPPORTED)
        if self.no_stop_trim is not None:
            if self.include_stop_str_in_output is not None:
                raise RequestError(
                    "no_stop_trim is SGLang's name for include_stop_str_in_output: send one of "
                    "them",
                    param="no_stop_trim",
                    code="invalid_value",
                )
            self.include_stop_str_in_output = self.no_stop_trim
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options is only allowed when stream is true",
                param="stream_options",
                code="invalid_value",
            )
        if self.store:
            raise RequestError(
                "store is true, but this server stores nothing: leave it out",
                param="store",
                code="unsupported_parameter",
            )
