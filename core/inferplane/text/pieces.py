"""What bytes each token stands for. Knows tokenizers' decoders, nothing of models or requests.

The text of a sequence is the bytes of its tokens, joined and read as UTF-8. With that, a stream
never has to decode anything twice, and a token's bytes can be told (for logprobs).
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from inferplane.errors import ModelError

SPACE_MARK = "\u2581"
"""sentencepiece's stand-in for a space"""

SUPPORTED = "ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip at the start"


def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself where it is printable,
    else the next unused code point from 256 on."""
    table: dict[str, int] = {}
    unused = 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            table[chr(byte)] = byte
        else:
            table[chr(unused)] = byte
            unused += 1
    return table


BYTE_OF_CHAR = _byte_of_char()


@dataclass(frozen=True)
class PieceRule:
    """How a token's text becomes bytes."""

    byte_level: bool = False
    byte_fallback: bool = False
    replace: tuple[tuple[str, str], ...] = ()
    join: str = ""
    strip_start: int = 0
    """how many leading spaces the whole text loses"""

    def to_bytes(self, token: str) -> bytes:
        if self.byte_level:
            try:
                return bytes([BYTE_OF_CHAR[char] for char in token])
            except KeyError:  # an added token, written as it is
                return token.encode()
        for old, new in self.replace:
            token = token.replace(old, new)
        if self.byte_fallback and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return (self.join + token).encode()


def piece_rule(decoder: Any) -> PieceRule:
    """The rule of a `tokenizers` decoder; ModelError for one that cannot be streamed."""
    if decoder is None:
        return PieceRule(join=" ", strip_start=1)
    state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    fallback = False
    replace: list[tuple[str, str]] = []
    strip = 0
    for step in steps:
        match step:
            case {"type": "ByteLevel"}:
                return PieceRule(byte_level=True)
            case {"type": "ByteFallback"}:
                fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                replace.append((old, new))
            case {"type": "Metaspace", "replacement": mark}:
                replace.append((mark, " "))
                strip = 0 if step.get("prepend_scheme") == "never" else 1
            case {"type": "Strip", "content": " ", "start": count, "stop": 0}:
                strip = count
            case _:
                raise ModelError(
                    f"the tokenizer's decoder has step {step}, supported steps: {SUPPORTED}"
                )
    return PieceRule(byte_fallback=fallback, replace=tuple(replace), strip_start=strip)
