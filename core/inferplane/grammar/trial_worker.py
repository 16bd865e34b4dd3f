"""A process that compiles constraints and may be killed.

Reads frames from standard input, each a length (u32, little-endian) and msgpack: first a Setup,
then Jobs. Writes a Verdict for each. Ends with its input, or when it needs too much memory.
"""

import os
import resource
import struct
import sys
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from inferplane.errors import RequestError
from inferplane.grammar.compile import Choices, Compiler
from inferplane.grammar.contract import Grammar, Vocabulary
from inferplane.hw.host import give_way
from inferplane.sampling_params import Constraint

RECURSION = 4000
"""frames; a grammar that needs more is refused"""


class Setup(msgspec.Struct):
    pieces: list[bytes]
    special: list[int]
    ends: list[int]
    backend: str
    whitespace: str
    memory: int
    """bytes that compiling may take beyond what the process has at its start"""


class Verdict(msgspec.Struct, kw_only=True):
    """A grammar, or why there is none; fields as in RequestError."""

    grammar: Grammar | None = None
    message: str = ""
    param: str | None = None
    code: str | None = None


def read_frame(stream: BinaryIO) -> bytes:
    """b"" at the end of the input."""
    head = stream.read(4)
    return stream.read(struct.unpack("<I", head)[0]) if len(head) == 4 else b""


def write_frame(stream: BinaryIO, message: msgspec.Struct) -> None:
    data = msgspec.msgpack.encode(message)
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def limit_memory(allowance: int) -> None:
    """Allocations beyond it fail, which ends a native library and so this process."""
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + allowance, used + allowance))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def verdict(compiler: Compiler, constraint: Constraint) -> Verdict:
    try:
        return Verdict(grammar=compiler.compile(constraint))
    except RequestError as error:
        return Verdict(message=error.message, param=error.param, code=error.code)
    except (RecursionError, MemoryError):
        why = f"{constraint.kind} is too complex: simplify it"
        return Verdict(message=why, param=constraint.kind, code="grammar_too_complex")


def longest_first(pieces: list[bytes], special: frozenset[int]) -> Callable[[str], list[int]]:
    """A tokenizer that is not the model's, but good enough to see whether a grammar works."""
    ids = {piece: i for i, piece in enumerate(pieces) if piece and i not in special}
    longest = max(map(len, ids), default=0)

    def encode(text: str) -> list[int]:
        data, at, tokens = text.encode(), 0, list[int]()
        while at < len(data):
            sizes = range(min(longest, len(data) - at), 0, -1)
            size = next((size for size in sizes if data[at : at + size] in ids), 0)
            if size:
                tokens.append(ids[data[at : at + size]])
            at += size or 1
        return tokens

    return encode


def main() -> None:
    give_way()  # to the engine and the server, whose session it shares
    stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the frames
    setup = msgspec.msgpack.decode(read_frame(stdin), type=Setup)
    vocabulary = Vocabulary(
        setup.pieces,
        frozenset(setup.special),
        frozenset(setup.ends),
        longest_first(setup.pieces, frozenset(setup.special)),
    )
    compiler = Compiler(vocabulary, Choices(setup.backend, setup.whitespace))
    compiler.warm_up()
    limit_memory(setup.memory)
    sys.setrecursionlimit(RECURSION)
    write_frame(stdout, Verdict())
    decoder = msgspec.msgpack.Decoder(Constraint)
    while frame := read_frame(stdin):
        write_frame(stdout, verdict(compiler, decoder.decode(frame)))


if __name__ == "__main__":
    main()
