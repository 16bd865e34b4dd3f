"""Logprobs in the shapes that OpenAI's chat and completions APIs give them."""

import codecs
from collections.abc import Container, Sequence
from typing import Any

from inferplane.messages import TokenLogprobs
from inferplane.text.tokenizer import Tokenizer

MIN_LOGPROB = -9999.0
"""JSON has no minus infinity; OpenAI's API gives this"""


def finite(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)


def chat_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprobs], top: int
) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion, or of a chunk of one."""
    return {
        "content": [
            {
                **_chat_token(tokenizer, item.token, item.logprob),
                "top_logprobs": [
                    _chat_token(tokenizer, token, logprob) for token, logprob in item.top[:top]
                ],
            }
            for item in logprobs
        ],
        "refusal": None,
    }


def _chat_token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    return {
        "token": raw.decode("utf-8", "replace"),
        "logprob": finite(logprob),
        "bytes": list(raw),
    }


def prompt_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprobs | None]
) -> list[dict[str, Any] | None]:
    """vLLM's shape: for each token of the prompt a map from token id to its figures."""
    result: list[dict[str, Any] | None] = []
    for item in logprobs:
        if item is None:
            result.append(None)
            continue
        ranked = {
            str(token): _ranked(tokenizer, token, logprob, rank)
            for rank, (token, logprob) in enumerate(item.top, 1)
        }
        ranked[str(item.token)] = _ranked(tokenizer, item.token, item.logprob, item.rank)
        result.append(ranked)
    return result


def _ranked(tokenizer: Tokenizer, token: int, logprob: float, rank: int) -> dict[str, Any]:
    text = tokenizer.token_bytes(token).decode("utf-8", "replace")
    return {"logprob": finite(logprob), "rank": rank, "decoded_token": text}


class CompletionLogprobs:
    """The legacy object of /v1/completions for one choice, piece by piece.

    `text_offset` counts characters of the choice's text; a token inside of a character has the
    offset of that character.
    """

    def __init__(self, tokenizer: Tokenizer, top: int) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def take(
        self, logprobs: Sequence[TokenLogprobs | int], hidden: Container[int] = ()
    ) -> dict[str, list[Any]]:
        """The object for these tokens; an int is a token without logprob, the prompt's first.
        The text does not show `hidden` tokens."""
        result: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for item in logprobs:
            token = item if isinstance(item, int) else item.token
            result["tokens"].append(self._name(token))
            result["text_offset"].append(self._offset)
            if token not in hidden:
                self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token)))
            if isinstance(item, int):
                result["token_logprobs"].append(None)
                result["top_logprobs"].append(None)
                continue
            result["token_logprobs"].append(finite(item.logprob))
            top = {self._name(token): finite(p) for token, p in item.top[: self._top]}
            top[self._name(item.token)] = finite(item.logprob)
            result["top_logprobs"].append(top)
        return result

    def _name(self, token: int) -> str:
        """The token's text; one that is no text by itself is told apart by its bytes."""
        raw = self._tokenizer.token_bytes(token)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
