"""The tokens of a model's tokenizer as grammar engines see them."""

from inferplane.errors import RequestError
from inferplane.grammar.contract import Vocabulary
from inferplane.text.tokenizer import Tokenizer


def vocabulary_of(tokenizer: Tokenizer, width: int) -> Vocabulary:
    """`width` of the model's logits, which may be more or less than the tokenizer's tokens.
    RequestError for a model without an end-of-sequence token."""
    ends = frozenset(i for i in tokenizer.eos_ids if i < width)
    if not ends:
        raise RequestError(
            "the model has no end-of-sequence token, which structured output needs",
            code="unsupported_parameter",
        )
    return Vocabulary(
        pieces=[tokenizer.token_bytes(i) for i in range(width)],
        special=frozenset(i for i in tokenizer.special_ids if i < width) | ends,
        ends=ends,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
    )
