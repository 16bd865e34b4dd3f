"""What /v1/chat/completions and /v1/completions have in common."""

from typing import Annotated, Literal

from pydantic import Field

from inferplane.errors import RequestError
from inferplane.server.body import Schema
from inferplane.server.constraints import ConstraintFields
from inferplane.server.sampling import SamplingFields

PRIORITY_LIMIT = 2**31 - 1

ShortText = Annotated[str, Field(max_length=512)]


class StreamOptions(Schema):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class OpenAIFields(ConstraintFields, SamplingFields):
    """`user`, `metadata`, `safety_identifier`, `prompt_cache_key`, `service_tier` auto and `store`
    false ask nothing of a server that keeps nothing, and have no effect."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: ShortText | None = None
    metadata: Annotated[dict[str, ShortText], Field(max_length=16)] | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: bool | None = None
    cache_salt: ShortText | None = None
    priority: Annotated[int, Field(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)] | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def check_common(self) -> None:
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
