"""What Ollama's endpoints take, and what a Turn makes of it."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from pydantic import BeforeValidator, Field

from inferplane.sampling_params import (
    Constraint,
    SamplingParams,
    json_object_constraint,
    json_schema_constraint,
)
from inferplane.server.body import Schema
from inferplane.server.messages import MAX_MESSAGES
from inferplane.server.refusals import (
    invalid,
    known,
    list_at,
    missing,
    object_at,
    text_at,
    unsupported,
)
from inferplane.server.sampling import Strings, refuse_unsupported, renamed
from inferplane.server.shapes import MaybeNoMessages
from inferplane.server.tools import MAX_TOOLS
from inferplane.server.turn import THINKING

ROLES = ("system", "user", "assistant", "tool")
SAME = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "seed")
UNSUPPORTED_OPTIONS = (
    "mirostat",
    "mirostat_eta",
    "mirostat_tau",
    "tfs_z",
    "typical_p",
    "repeat_last_n",
    "penalize_newline",
)
UNSUPPORTED_ANSWER = ("logprobs", "top_logprobs", "truncate", "shift")
NO_EFFECT = (
    "num_ctx",
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "numa",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mmap",
    "use_mlock",
    "embedding_only",
)
EFFORTS = ("low", "medium", "high")


def _named(value: Any) -> Any:
    """Ollama's names may carry a tag, of which we have one."""
    return value.removesuffix(":latest") if isinstance(value, str) else value


ModelName = Annotated[str, BeforeValidator(_named)]


Count = Annotated[int, Field(ge=-1, le=2**31 - 1)]


class Options(Schema):
    """`num_ctx` and what is about Ollama's own memory and threads have no effect: the server's
    settings decide."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    num_predict: int | None = None
    stop: Strings | None = None
    num_ctx: Count | None = None
    num_keep: Count | None = None
    num_batch: Count | None = None
    num_gpu: Count | None = None
    main_gpu: Count | None = None
    num_thread: Count | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    embedding_only: bool | None = None
    mirostat: Any = None
    mirostat_eta: Any = None
    mirostat_tau: Any = None
    tfs_z: Any = None
    typical_p: Any = None
    repeat_last_n: Any = None
    penalize_newline: Any = None

    def params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        said = {name: getattr(self, name) for name in SAME if getattr(self, name) is not None}
        if self.repeat_penalty is not None:
            said["repetition_penalty"] = self.repeat_penalty
        if self.num_predict is not None and self.num_predict not in (-1, -2):
            said["max_tokens"] = self.num_predict
        return SamplingParams(**{**defaults, **said, "stop": self.stop or []})


SPELLINGS = {
    **{name: f"options.{name}" for name in (*SAME, "stop")},
    "repetition_penalty": "options.repeat_penalty",
    "max_tokens": "options.num_predict",
    "json_schema": "format",
}
"""our names -> Ollama's"""


class Common(Schema):
    """`keep_alive` has no effect: the model stays."""

    refused: ClassVar[tuple[str, ...]] = (
        *UNSUPPORTED_ANSWER,
        *(f"options.{n}" for n in UNSUPPORTED_OPTIONS),
    )
    no_effect: ClassVar[tuple[str, ...]] = (
        "keep_alive",
        *(f"options.{name}" for name in NO_EFFECT),
    )

    model: ModelName
    stream: bool | None = None
    format: Any = None
    options: Options | None = None
    keep_alive: Annotated[str | int | float | None, Field(union_mode="left_to_right")] = None
    think: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    truncate: Any = None
    shift: Any = None

    def check(self) -> None:
        refuse_unsupported(self, UNSUPPORTED_ANSWER)
        with renamed(**{name: f"options.{name}" for name in UNSUPPORTED_OPTIONS}):
            refuse_unsupported(self._options, UNSUPPORTED_OPTIONS)
        if self.think not in (None, True, False, *EFFORTS) or type(self.think) in (int, float):
            raise invalid("think", f"must be true, false or one of {', '.join(EFFORTS)}")

    @property
    def _options(self) -> Options:
        return self.options or Options()

    @property
    def streams(self) -> bool:
        return self.stream is not False

    def constraint(self) -> Constraint | None:
        """What `format` demands: "json", or a JSON schema."""
        if self.format in (None, ""):
            return None
        if self.format == "json":
            return json_object_constraint()
        return json_schema_constraint(object_at("format", self.format))

    @property
    def effort(self) -> str | None:
        return self.think if isinstance(self.think, str) else None

    def template(self) -> dict[str, Any]:
        return dict.fromkeys(THINKING, self.think) if isinstance(self.think, bool) else {}

    def params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        params = self._options.params(defaults)
        constraint = self.constraint()
        demanded = {} if constraint is None else constraint.fields()
        return msgspec.structs.replace(params, **demanded)


class ChatRequest(Common):
    messages: MaybeNoMessages = None
    tools: Any = None


class GenerateRequest(Common):
    refused: ClassVar[tuple[str, ...]] = (
        *Common.refused,
        "suffix",
        "images",
        "template",
        "context",
    )

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: Any = None
    images: Any = None
    template_: Annotated[Any, Field(alias="template")] = None
    context: Any = None

    def check(self) -> None:
        super().check()
        with renamed(template_="template"):
            refuse_unsupported(self, ("suffix", "images", "template_", "context"))
        if self.raw and self.system is not None:
            raise invalid("system", "is not allowed in a raw prompt")


class ShowRequest(Schema):
    no_effect: ClassVar[tuple[str, ...]] = ("verbose",)

    model: ModelName | None = None
    name: ModelName | None = None
    verbose: bool | None = None


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    if messages is None:
        raise missing("messages")
    return _Conversation(list_at("messages", messages, MAX_MESSAGES)).checked


class _Conversation:
    def __init__(self, given: list[tuple[str, Any]]) -> None:
        self.checked: list[dict[str, Any]] = []
        self._calls: list[tuple[str, str]] = []
        """(id, name) of calls that have no result yet: Ollama gives calls no ids"""
        for at, message in given:
            self.checked.append(self._message(at, object_at(at, message)))

    def _message(self, at: str, message: dict[str, Any]) -> dict[str, Any]:
        role = message.get("role")
        if role is None:
            raise missing(f"{at}.role")
        if role not in ROLES:
            raise invalid(f"{at}.role", f"must be one of {', '.join(ROLES)}")
        if message.get("images"):
            raise unsupported(f"{at}.images", "an image")
        own = {"assistant": ("thinking", "tool_calls"), "tool": ("tool_name", "tool_call_id")}
        known(at, message, ("role", "content", "images", *own.get(role, ())))
        calls = message.get("tool_calls")
        content = message.get("content")
        if content is None and calls:
            content = ""
        checked = {"role": role, "content": text_at(f"{at}.content", content)}
        if message.get("thinking") is not None:
            checked["reasoning_content"] = text_at(f"{at}.thinking", message["thinking"])
        if calls not in (None, []):
            listed = list_at(f"{at}.tool_calls", calls, MAX_TOOLS)
            checked["tool_calls"] = [self._call(*call) for call in listed]
        if role == "tool":
            checked |= self._result(at, message)
        return checked

    def _call(self, at: str, call: Any) -> dict[str, Any]:
        known(at, object_at(at, call), ("id", "type", "function"))
        function = object_at(f"{at}.function", call.get("function"))
        known(f"{at}.function", function, ("name", "arguments", "index", "description"))
        name = text_at(f"{at}.function.name", function.get("name"), 128)
        arguments = object_at(f"{at}.function.arguments", function.get("arguments"))
        identity = f"call_{len(self.checked)}_{len(self._calls)}"
        self._calls.append((identity, name))
        return {
            "id": identity,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }

    def _result(self, at: str, message: dict[str, Any]) -> dict[str, Any]:
        """The result of the first call that has none, or of the first of that name."""
        name = message.get("tool_name")
        if name is not None:
            text_at(f"{at}.tool_name", name, 128)
        found = next((call for call in self._calls if name in (None, call[1])), None)
        if found is None:
            raise invalid(f"{at}.role", "is 'tool', but there is no call of a tool before it")
        self._calls.remove(found)
        return {"tool_call_id": found[0], "name": found[1]}
