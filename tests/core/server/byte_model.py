"""A vocabulary of 256 bytes and three special tokens, so that texts and tokens are easy to tell."""

from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from inferplane.text.chat_template import ChatTemplate
from inferplane.text.tokenizer import Tokenizer

BOS, EOS, TURN = 256, 257, 258
VOCAB_SIZE = 259

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
    "{% if enable_thinking %} <think>{% endif %}"
)


TOOL_TEMPLATE = (
    "{{ bos_token }}{% if tools %}tools as <tool_call>{{ '{\"name\"' }}: {{ tools | tojson }}\n"
    "{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "\n{% endfor %}{% if add_generation_prompt %}assistant:"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}{% endif %}"
)
"""in the manner of Qwen 3"""


def byte_tokenizer(
    *, chat: bool = True, template: str = TEMPLATE, special: Sequence[str] = ()
) -> Tokenizer:
    """Token id = byte value; a tokenizer of the `tokenizers` package behind our own interface.
    `special` are further special tokens, with the ids from TURN + 1 on."""
    letters = _byte_letters()
    vocab = {letter: byte for byte, letter in enumerate(letters)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>", "<turn>", *special])
    assert backend.token_to_id("<eos>") == EOS
    return Tokenizer(
        backend,
        eos_ids=[EOS],
        special={"bos_token": "<bos>", "eos_token": "<eos>"},
        chat_template=ChatTemplate(template, "byte model") if chat else None,
    )


def _byte_letters() -> list[str]:
    """GPT-2's stand-in for each byte: printable ones stand for themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters: list[str] = []
    spare = 256
    for byte in range(256):
        if byte in plain:
            letters.append(chr(byte))
        else:
            letters.append(chr(spare))
            spare += 1
    return letters
