"""Programs on a server with Anthropic's Messages API."""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

from inferplane.errors import ProgramError
from inferplane.lang.backend import Answer, TokenUsage, asked_for, chat_text, conversation
from inferplane.lang.choices import ChoicesMethod
from inferplane.lang.connection import Connection
from inferplane.lang.sampling import Sampling
from inferplane.lang.transcript import Message, Transcript

VERSION = "2023-06-01"
NAMES = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop": "stop_sequences",
}
FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}


class Anthropic:
    """Text before a `gen` in the assistant's message is sent as the beginning of its answer."""

    def __init__(
        self,
        model_name: str,
        *,
        base_url: str = "https://api.anthropic.com",
        api_key: str | None = None,
    ) -> None:
        self.model_name = model_name
        self.token_usage = TokenUsage()
        headers = {"anthropic-version": VERSION}
        if api_key is not None:
            headers["x-api-key"] = api_key
        self._connection = Connection(base_url, None, headers)

    def close(self) -> None:
        self._connection.close()

    @property
    def keeps_tokens(self) -> bool:
        return False

    def text(self, transcript: Transcript) -> str:
        return chat_text(transcript)

    def generate(self, transcript: Transcript, sampling: Sampling) -> list[Answer]:
        answer = self._connection.post("/v1/messages", self._body(transcript, sampling))
        text = "".join([block.get("text", "") for block in answer["content"]])
        return [Answer(text, self._meta(answer["usage"], answer))]

    def stream(self, transcript: Transcript, sampling: Sampling) -> Generator[Answer, None, None]:
        body = {**self._body(transcript, sampling), "stream": True}
        usage: dict[str, Any] = {}
        end: dict[str, Any] = {}
        with closing(self._connection.events("/v1/messages", body)) as events:
            for event in events:
                match event["type"]:
                    case "message_start":
                        usage |= event["message"]["usage"]
                    case "content_block_delta":
                        yield Answer(event["delta"].get("text", ""), {})
                    case "message_delta":
                        usage |= event["usage"]
                        end = event["delta"]
                    case "message_stop":
                        break
        yield Answer("", self._meta(usage, end))

    def select(
        self, transcript: Transcript, choices: Sequence[str], method: ChoicesMethod
    ) -> Answer:
        raise ProgramError(
            "select compares how likely each choice is, which Anthropic's API does not tell: use"
            " another backend"
        )

    def prefill(self, transcript: Transcript) -> None:
        """The API has no such call: the server caches what it is asked."""

    def flush_cache(self) -> None:
        raise ProgramError("Anthropic's API cannot empty a server's cache: use RuntimeEndpoint")

    def get_server_info(self) -> dict[str, Any]:
        info: dict[str, Any] = self._connection.get(f"/v1/models/{self.model_name}")
        return info

    def _body(self, transcript: Transcript, sampling: Sampling) -> dict[str, Any]:
        asked = asked_for("Anthropic's API", sampling, tuple(NAMES))
        messages, written = conversation(transcript, _message)
        body: dict[str, Any] = {"model": self.model_name}
        body |= {NAMES[name]: value for name, value in asked.items()}
        system = [message["content"] for message in messages if message["role"] == "system"]
        if system:
            body["system"] = "\n\n".join(system)
        body["messages"] = [message for message in messages if message["role"] != "system"]
        if written:
            body["messages"].append({"role": "assistant", "content": written})
        return body

    def _meta(self, usage: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
        """Tokens read from the cache, and written to it, are not among `input_tokens`."""
        cached = usage.get("cache_read_input_tokens") or 0
        prompt = usage["input_tokens"] + cached + (usage.get("cache_creation_input_tokens") or 0)
        made = usage["output_tokens"]
        self.token_usage.add(prompt, cached, made)
        reason = end.get("stop_reason")
        return {
            "finish_reason": {
                "type": FINISH.get(str(reason), reason),
                "matched": end.get("stop_sequence"),
            },
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "cached_tokens": cached,
        }


def _message(message: Message) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.text}
    content: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif part.is_url and not part.url().startswith("data:"):
            content.append({"type": "image", "source": {"type": "url", "url": part.url()}})
        else:
            kind, data = part.media()
            source = {"type": "base64", "media_type": kind, "data": data}
            content.append({"type": "image", "source": source})
    return {"role": message.role, "content": content}
