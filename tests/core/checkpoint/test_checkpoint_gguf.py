"""The GGUF reader against files that are right, and against files that are not."""

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferplane.checkpoint.gguf import TENSOR_TYPES, GgufFile
from inferplane.errors import ModelError


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + shape + struct.pack("<IQ", kind, offset)


def gguf(
    pairs: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    head += b"".join(pairs + tensors)
    return head + b"\0" * (-len(head) % alignment) + data


PAIRS = [
    pair("u8", 0, struct.pack("<B", 200)),
    pair("i8", 1, struct.pack("<b", -3)),
    pair("u16", 2, struct.pack("<H", 60000)),
    pair("i16", 3, struct.pack("<h", -300)),
    pair("u32", 4, struct.pack("<I", 4_000_000_000)),
    pair("i32", 5, struct.pack("<i", -5)),
    pair("f32", 6, struct.pack("<f", 0.5)),
    pair("flag", 7, b"\1"),
    pair("text", 8, string("Grüße")),
    pair("words", 9, array(8, 3, string("a") + string("") + string("ccc"))),
    pair("numbers", 9, array(5, 2, struct.pack("<2i", 7, -7))),
    pair("u64", 10, struct.pack("<Q", 2**63)),
    pair("i64", 11, struct.pack("<q", -(2**62))),
    pair("f64", 12, struct.pack("<d", 0.1)),
]
DATA = struct.pack("<6f", *range(6)) + b"\0" * 8 + bytes(range(34))
WHOLE = gguf(PAIRS, [tensor("a", [3, 2], 0, 0), tensor("b", [32], 8, 32)], DATA)


@pytest.mark.parametrize("version", [2, 3])
def test_reads_every_value_type_and_tensor(tmp_path: Path, version: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(PAIRS, [tensor("a", [3, 2], 0, 0)], DATA, version))
    file = GgufFile(path)
    values = [200, -3, 60000, -300, 4_000_000_000, -5, 0.5, True, "Grüße", ["a", "", "ccc"]]
    values += [[7, -7], 2**63, -(2**62), 0.1]
    assert [file.get(key) for key in file.keys()] == values  # noqa: SIM118
    assert file.get("absent", 5) == 5
    assert file.length("words") == 3
    assert file.length("text") == 0
    info = file.tensors["a"]
    assert (info.shape, info.type.name, info.nbytes) == ((2, 3), "F32", 24)
    assert struct.unpack("<6f", file.raw("a")) == (0, 1, 2, 3, 4, 5)


def test_a_damaged_string_of_an_array_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(WHOLE.replace(b"ccc", b"c\xffc"))
    with pytest.raises(ModelError, match=r"offset \d+: a string is not valid UTF-8"):
        GgufFile(path).get("words")


def test_second_tensor_is_found_at_its_offset(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(WHOLE)
    assert bytes(GgufFile(tmp_path / "m.gguf").raw("b")) == bytes(range(34))


def test_digest_follows_metadata_alone(tmp_path: Path) -> None:
    def digest(pairs: list[bytes], data: bytes) -> str:
        path = tmp_path / "m.gguf"
        path.write_bytes(gguf(pairs, [tensor("a", [3, 2], 0, 0)], data))
        return GgufFile(path).metadata_digest()

    first = digest(PAIRS, DATA)
    assert digest(PAIRS, DATA[::-1]) == first
    assert digest([*PAIRS[:-1], pair("f64", 12, struct.pack("<d", 0.2))], DATA) != first


def test_every_truncation_is_a_model_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for length in range(len(WHOLE)):
        path.write_bytes(WHOLE[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            GgufFile(path)


def test_truncation_inside_an_array_of_strings(tmp_path: Path) -> None:
    """Alone in the file, so that no other length gives the truncation away."""
    path = tmp_path / "cut.gguf"
    whole = gguf([pair("words", 9, array(8, 3, string("a" * 30) + string("") + string("ccc")))], [])
    end = whole.rindex(b"ccc") + 3
    for length in range(end):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            GgufFile(path)
    path.write_bytes(whole[:end])
    assert GgufFile(path).get("words") == ["a" * 30, "", "ccc"]


BAD = {
    "magic": (b"GGML" + WHOLE[4:], "not a GGUF file"),
    "version 1": (gguf([], [], version=1), "version 1, only 2 and 3"),
    "big endian": (b"GGUF" + struct.pack(">I", 3) + WHOLE[8:], "perhaps big-endian"),
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0) + b"\0" * 64, "truncated"),
    "pair count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + b"\0" * 64, "truncated"),
    "long name": (gguf([struct.pack("<Q", 2**40) + b"x" * 64], []), "a name of 1099511627776"),
    "long string": (gguf([pair("k", 8, struct.pack("<Q", 2**40))], []), "1099511627776 bytes"),
    "many strings": (gguf([pair("k", 9, array(8, 2**60, b""))], []), "strings needs"),
    "many numbers": (gguf([pair("k", 9, array(6, 2**60, b""))], []), "values needs"),
    "string in array": (
        gguf([pair("k", 9, array(8, 2, struct.pack("<QQ", 2**63, 0)))], []),
        "inside an array of strings",
    ),
    "nested array": (gguf([pair("k", 9, array(9, 1, array(0, 1, b"x")))], []), "element type 9"),
    "value type": (gguf([pair("k", 13, b"x")], []), "unknown value type 13"),
    "not utf-8": (gguf([pair("k", 8, string(b"\xff"))], []), "not valid UTF-8"),
    "same key": (gguf([PAIRS[0], PAIRS[0]], []), "'u8' appears twice"),
    "no dimensions": (gguf([], [tensor("a", [], 0, 0)], DATA), "0 dimensions"),
    "five dimensions": (gguf([], [tensor("a", [1] * 5, 0, 0)], DATA), "5 dimensions"),
    "empty dimension": (gguf([], [tensor("a", [0, 4], 0, 0)], DATA), r"shape \[4, 0\]"),
    "part of a block": (gguf([], [tensor("a", [33], 8, 0)], DATA), "multiple of 32"),
    "huge tensor": (gguf([], [tensor("a", [2**62, 2**62], 0, 0)], DATA), "tensor 'a' needs bytes"),
    "offset": (gguf([], [tensor("a", [4], 0, 2**62)], DATA), "tensor 'a' needs bytes"),
    "misaligned": (gguf([], [tensor("a", [4], 0, 4)], DATA), "alignment 32"),
    "same tensor": (gguf([], [tensor("a", [4], 0, 0)] * 2, DATA), "'a' appears twice"),
    "alignment": (
        gguf([pair("general.alignment", 4, struct.pack("<I", 0))], [tensor("a", [4], 0, 0)], DATA),
        "general.alignment is 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_file_is_named_and_costs_no_memory(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=message) as caught:
            GgufFile(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert "offset" in str(caught.value)
    assert peak < 2**20


@pytest.mark.parametrize(("code", "name"), [(10, "Q2_K"), (11, "Q3_K"), (99, "99")])
def test_unsupported_type_lists_the_supported(tmp_path: Path, code: int, name: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([], [tensor("w", [256], code, 0)], b"\0" * 512))
    with pytest.raises(ModelError, match=f"tensor 'w' has type {name}, supported: ") as caught:
        GgufFile(path)
    assert all(kind.name in str(caught.value) for kind in TENSOR_TYPES.values())


@pytest.mark.parametrize("content", [None, b""])
def test_absent_and_empty_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.gguf cannot be read"):
        GgufFile(path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6))
def test_damaged_bytes_give_a_model_error_or_a_file(
    tmp_path: Path, edits: list[tuple[int, int]]
) -> None:
    content = bytearray(WHOLE)
    for at, byte in edits:
        content[at] = byte
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    try:
        file = GgufFile(path)
    except ModelError:
        return
    for key in file.keys():  # noqa: SIM118
        try:
            file.get(key)
        except ModelError:
            continue
    for name, info in file.tensors.items():
        assert len(file.raw(name)) == info.nbytes
