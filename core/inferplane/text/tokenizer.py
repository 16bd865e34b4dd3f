"""Text to tokens and back, and chat messages to a prompt. Imports neither torch nor transformers.

Built on `tokenizers`. A folder without tokenizer.json is converted by transformers, imported for
that alone. Decoding joins the bytes of the tokens (see pieces), so that a stream and a whole
answer always have the same text.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from inferplane.errors import ModelError, RequestError
from inferplane.text.chat_template import ChatTemplate, Message
from inferplane.text.gguf_vocab import Vocabulary, cached_tokenizer, special_tokens
from inferplane.text.pieces import piece_rule
from inferplane.text.tokenizer_files import TokenizerFiles


class Tokenizer:
    """One model's vocabulary. `special` are the named special tokens that templates may use."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_ids: Iterable[int],
        special: Mapping[str, str] | None = None,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        backend.no_truncation()  # a prompt is never cut without a word
        backend.no_padding()
        self._backend = backend
        self._special = dict(special or {})
        self._chat_template = chat_template
        self._rule = piece_rule(backend.decoder)
        self._pieces: dict[int, bytes] = {}
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size = backend.get_vocab_size()
        self.eos_ids = frozenset(eos_ids)
        bos = self._special.get("bos_token")
        self.bos_id: int | None = backend.token_to_id(bos) if bos else None
        self.strip_start = self._rule.strip_start
        """how many leading spaces a decoded text loses"""

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    @property
    def chat_template(self) -> ChatTemplate | None:
        return self._chat_template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text. Names of special tokens in it become those tokens, as in
        transformers; `add_special_tokens` adds what the model wants around a text, such as BOS."""
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:  # which one depends on its version
            raise RequestError(
                "the text is not valid Unicode: it has half of a surrogate pair",
                code="invalid_unicode",
            ) from error

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of a sequence; bytes that are not UTF-8 become U+FFFD."""
        skip = self.special_ids if skip_special_tokens else frozenset[int]()
        text = b"".join([self.token_bytes(i) for i in ids if i not in skip]).decode(
            "utf-8", "replace"
        )
        for _ in range(self.strip_start):
            text = text.removeprefix(" ")
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; none for an id that the vocabulary does not have."""
        piece = self._pieces.get(token_id)
        if piece is None:
            in_range = 0 <= token_id < 2**32
            token = self._backend.id_to_token(token_id) if in_range else None
            piece = b"" if token is None else self._rule.to_bytes(token)
            self._pieces[token_id] = piece
        return piece

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself; part of a character shows as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def render_chat(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt for these messages; `kwargs` are further variables of the template."""
        if self._chat_template is None:
            raise RequestError(
                "the model has no chat template: use completions, or start the server with"
                " --chat-template FILE",
                param="messages",
                code="no_chat_template",
            )
        variables = {**self._special, **kwargs}
        return self._chat_template.render(messages, tools, add_generation_prompt, variables)

    def encode_chat(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> list[int]:
        """The tokens of the rendered messages. The template writes BOS itself if it wants one."""
        text = self.render_chat(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **kwargs
        )
        return self.encode(text, add_special_tokens=False)


def load_folder(
    folder: Path,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    chat_template: str | None = None,
) -> Tokenizer:
    """The tokenizer in a model's folder; `chat_template` replaces the model's own."""
    files = TokenizerFiles(folder)
    backend = files.backend()
    source = chat_template if chat_template is not None else files.chat_template()
    special = files.special_tokens()
    eos = _ids(generation_config.get("eos_token_id")) or _ids(config.get("eos_token_id"))
    named = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return Tokenizer(
        backend,
        eos_ids=eos | _ids(named),
        special=special,
        chat_template=ChatTemplate(source, str(folder)) if source else None,
    )


def load_gguf(
    vocabulary: Vocabulary,
    generation_config: Mapping[str, Any],
    chat_template: str | None,
    cache: Path,
) -> Tokenizer:
    """The tokenizer in a GGUF file's metadata, converted once and kept in the cache folder."""
    source = chat_template if chat_template is not None else _gguf_templates(vocabulary)
    return Tokenizer(
        cached_tokenizer(vocabulary, cache),
        eos_ids=_ids(generation_config.get("eos_token_id")),
        special=special_tokens(vocabulary),
        chat_template=ChatTemplate(source, "GGUF metadata") if source else None,
    )


def _gguf_templates(vocabulary: Vocabulary) -> dict[str, str]:
    """The default template, and named ones, which have a key of their own each."""
    key = "tokenizer.chat_template"
    names = vocabulary.get("tokenizer.chat_templates", [])
    found = {"default": vocabulary.get(key)} | {n: vocabulary.get(f"{key}.{n}") for n in names}
    return {name: text for name, text in found.items() if isinstance(text, str)}


def _ids(value: object) -> frozenset[int]:
    """Token ids from a configuration: one, a list, or none."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise ModelError(f"eos_token_id is {value!r}, must be an id or a list of ids")
    return frozenset(values)
