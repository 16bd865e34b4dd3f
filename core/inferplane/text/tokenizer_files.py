"""Reads the tokenizer files of a model's folder. Never runs code from the folder."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from inferplane.errors import ModelError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerFiles:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat templates."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = self._read("tokenizer_config.json")
        self._map = self._read("special_tokens_map.json")

    def backend(self) -> tokenizers.Tokenizer:
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            return _convert(self._folder)
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain Exception
            raise ModelError(f"{path} cannot be read: {error}") from error
        self._add_missing(backend)
        return backend

    def special_tokens(self) -> dict[str, str]:
        """Role -> token, as templates see them."""
        found = {name: self._config.get(name, self._map.get(name)) for name in NAMED}
        texts = {name: _text(token) for name, token in found.items()}
        return {name: text for name, text in texts.items() if text is not None}

    def chat_template(self) -> str | dict[str, str]:
        """The template or named templates; "" if the model has none. A file of its own wins."""
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            try:
                return path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(f"{path} cannot be read: {error}") from error
        found = self._read("chat_template.json").get("chat_template")
        if found is None:
            found = self._config.get("chat_template")
        if isinstance(found, list):  # [{"name": ..., "template": ...}]
            try:
                found = {entry["name"]: entry["template"] for entry in found}
            except (KeyError, TypeError) as error:
                raise ModelError(
                    f"{self._folder}: chat_template is a list whose entries lack name or template"
                ) from error
        if found is None:
            return ""
        texts = list(found.values()) if isinstance(found, dict) else [found]
        if not all(isinstance(text, str) for text in texts):
            raise ModelError(f"{self._folder}: chat_template must be a text or named texts")
        return found

    def _read(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise ModelError(f"{path} must hold a JSON object, has {type(value).__name__}")
        return value

    def _add_missing(self, backend: tokenizers.Tokenizer) -> None:
        """Tokens that only tokenizer_config.json knows, as some fine-tuned models have them."""
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        listed = self._config.get("added_tokens_decoder") or {}
        entries = sorted(listed.items(), key=lambda entry: int(entry[0])) if listed else []
        for _, entry in entries:
            if entry["content"] in known:
                continue
            flags = {k: bool(entry.get(k, False)) for k in ("lstrip", "rstrip", "single_word")}
            special = bool(entry.get("special", False))
            token = AddedToken(
                entry["content"], normalized=bool(entry.get("normalized", not special)), **flags
            )
            add = backend.add_special_tokens if special else backend.add_tokens
            add([token])


def _text(token: object) -> str | None:
    """A token in a configuration is its text, or an object that has it as `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _convert(folder: Path) -> tokenizers.Tokenizer:
    """Let transformers convert an older tokenizer format; slow, so only without tokenizer.json."""
    try:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # every format has its own failures
        raise ModelError(
            f"{folder} has no tokenizer.json, and transformers cannot convert what is there:"
            f" {error}"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelError(
            f"{folder} has no tokenizer.json, and its {type(loaded).__name__} has no form that"
            " `tokenizers` reads: save one with `save_pretrained` of a fast tokenizer"
        )
    return backend
