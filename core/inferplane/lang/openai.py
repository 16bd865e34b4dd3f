"""Programs on any server with OpenAI's API, through chat completions or completions."""

import json
import re
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

from inferplane.errors import ProgramError
from inferplane.lang.backend import Answer, TokenUsage, asked_for, chat_text, conversation
from inferplane.lang.choices import ChoicesMethod, Scored, Tokens
from inferplane.lang.connection import Connection
from inferplane.lang.sampling import Sampling
from inferplane.lang.transcript import Transcript

NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "n": "n",
    "stop": "stop",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "min_new_tokens": "min_tokens",
    "top_k": "top_k",
    "min_p": "min_p",
    "ignore_eos": "ignore_eos",
    "stop_token_ids": "stop_token_ids",
    "regex": "regex",
    "skip_special_tokens": "skip_special_tokens",
}
"""our name -> the field; those from min_tokens on are extensions, sent only where a program uses
them, and a server without them refuses"""
OTHERS = ("max_new_tokens", "json_schema", "return_logprob", "top_logprobs_num")


class OpenAI:
    """`base_url` is the server's root or ends in /v1. `is_chat_model` False: texts without roles,
    through /v1/completions."""

    def __init__(
        self,
        model_name: str,
        *,
        base_url: str = "https://api.openai.com",
        api_key: str | None = None,
        is_chat_model: bool = True,
    ) -> None:
        self.model_name = model_name
        self.is_chat_model = is_chat_model
        self.token_usage = TokenUsage()
        self._connection = Connection(base_url, api_key)

    def close(self) -> None:
        self._connection.close()

    @property
    def keeps_tokens(self) -> bool:
        return not self.is_chat_model

    def text(self, transcript: Transcript) -> str:
        return chat_text(transcript) if self.is_chat_model else self._plain(transcript)

    def generate(self, transcript: Transcript, sampling: Sampling) -> list[Answer]:
        path, body = self._request(transcript, sampling)
        answer = self._connection.post(path, body)
        meta = self._usage(answer)
        answers = []
        for choice in answer["choices"]:
            said = choice["message"] if self.is_chat_model else {"content": choice["text"]}
            text, thought = said["content"] or "", said.get("reasoning_content") or ""
            _check_regex(sampling, text, choice)
            answers.append(Answer(text, {**meta, **_choice_meta(choice)}, thought))
        return answers

    def stream(self, transcript: Transcript, sampling: Sampling) -> Generator[Answer, None, None]:
        path, body = self._request(transcript, sampling)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        text, meta = "", dict[str, Any]()
        with closing(self._connection.events(path, body)) as events:
            for event in events:
                if event.get("usage"):
                    meta |= self._usage(event)
                    yield Answer("", meta)
                for choice in event.get("choices", ()):
                    said = choice["delta"] if self.is_chat_model else {"content": choice["text"]}
                    piece, thought = said.get("content") or "", said.get("reasoning_content") or ""
                    text += piece
                    if choice.get("finish_reason"):
                        _check_regex(sampling, text, choice)
                        meta |= _choice_meta(choice)
                    yield Answer(piece, meta, thought)

    def select(
        self, transcript: Transcript, choices: Sequence[str], method: ChoicesMethod
    ) -> Answer:
        """By the logprobs of echoed prompts; not every server of completions gives them."""
        if self.is_chat_model:
            raise ProgramError(
                "select compares how likely each choice is, which chat completions do not tell:"
                " use OpenAI(..., is_chat_model=False) or another backend"
            )
        prompt = self._plain(transcript)
        if not prompt:
            raise ProgramError("select needs text before it: the first token has no probability")
        tokens = self._scored(prompt, choices)
        alone = self._scored("", choices) if method.unconditional else []
        if any(len(a) != len(b) for a, b in zip(tokens, alone, strict=False)):
            raise ProgramError(
                f"{method.name} needs choices with the same tokens after the prompt and alone:"
                " begin them with a space, or use another backend"
            )
        best, meta = method.decide(tokens, alone)
        return Answer(choices[best], meta)

    def prefill(self, transcript: Transcript) -> None:
        """The API has no such call: the server caches what it is asked."""

    def flush_cache(self) -> None:
        raise ProgramError("OpenAI's API cannot empty a server's cache: use RuntimeEndpoint")

    def get_server_info(self) -> dict[str, Any]:
        info: dict[str, Any] = self._connection.get(f"/v1/models/{self.model_name}")
        return info

    def _plain(self, transcript: Transcript) -> str:
        if not transcript.shape().is_plain:
            raise ProgramError("roles need a chat model: leave out is_chat_model=False")
        return transcript.render(lambda messages, answer: "")[0]

    def _request(self, transcript: Transcript, sampling: Sampling) -> tuple[str, dict[str, Any]]:
        """The path and the body."""
        asked = asked_for("OpenAI's API", sampling, (*NAMES, *OTHERS))
        body: dict[str, Any] = {"model": self.model_name}
        body |= {NAMES[name]: value for name, value in asked.items() if name in NAMES}
        if "json_schema" in asked:
            schema = {"name": "answer", "schema": json.loads(asked["json_schema"]), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        top = asked.get("top_logprobs_num", 0)
        if self.is_chat_model:
            messages, written = conversation(transcript)
            if written:
                raise ProgramError(
                    f"{written!r:.60} comes before the answer in the assistant's message, which"
                    " chat completions cannot continue: put it into the user's, or use another"
                    " backend"
                )
            body |= {"messages": messages, "max_completion_tokens": asked["max_new_tokens"]}
            if asked.get("return_logprob"):
                body |= {"logprobs": True, "top_logprobs": top}
            return "/v1/chat/completions", body
        body |= {"prompt": self._plain(transcript), "max_tokens": asked["max_new_tokens"]}
        if asked.get("return_logprob"):
            body["logprobs"] = top
        return "/v1/completions", body

    def _scored(self, prompt: str, choices: Sequence[str]) -> list[Tokens]:
        """The tokens of each choice behind the prompt. One that reaches into the prompt counts."""
        body = {
            "model": self.model_name,
            "prompt": [prompt + choice for choice in choices],
            "echo": True,
            "logprobs": 0,
            "max_tokens": 1,
            "temperature": 0.0,
        }
        answer = self._connection.post("/v1/completions", body)
        self._usage(answer)
        scored: list[Tokens] = []
        for choice, entry in zip(choices, answer["choices"], strict=True):
            echoed = entry["logprobs"]
            end = len(prompt) + len(choice)
            rows = zip(
                echoed["tokens"], echoed["token_logprobs"], echoed["text_offset"], strict=True
            )
            inside = [
                Scored(logprob, token, token)
                for token, logprob, offset in rows
                if len(prompt) < offset + len(token) and offset < end
            ]
            scored.append(inside)
        return scored

    def _usage(self, answer: dict[str, Any]) -> dict[str, Any]:
        usage = answer.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        prompt, made = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        self.token_usage.add(prompt, cached, made)
        return {"prompt_tokens": prompt, "completion_tokens": made, "cached_tokens": cached}


def _choice_meta(choice: dict[str, Any]) -> dict[str, Any]:
    meta: dict[str, Any] = {"finish_reason": {"type": choice["finish_reason"]}}
    if choice.get("logprobs"):
        meta["logprobs"] = choice["logprobs"]
    return meta


def _check_regex(sampling: Sampling, text: str, choice: dict[str, Any]) -> None:
    """Servers without the field may ignore it; an answer that was cut off or stopped at a stop
    string may be the beginning of a match."""
    ended = choice.get("finish_reason") == "stop" and not sampling.stop
    if sampling.regex is None or not ended:
        return
    try:
        matched = re.fullmatch(sampling.regex, text)
    except re.error:
        return  # the server's dialect, such as \p{L}, is not Python's
    if not matched:
        raise ProgramError(
            f"the server answered {text!r:.60}, which regex {sampling.regex!r:.60} does not match:"
            " it may not support 'regex'"
        )
