"""The incremental detokenizer against decoding everything at once."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferplane.text.detokenizer import Detokenizer
from inferplane.text.tokenizer import Tokenizer
from tests.core.text.vocabularies import byte_fallback, byte_level, metaspace

BYTES = Tokenizer(byte_level(), eos_ids=[])
TOKENIZERS = {
    "byte level": BYTES,
    "byte fallback": Tokenizer(byte_fallback(prefix=False), eos_ids=[]),
    "byte fallback, prefix": Tokenizer(byte_fallback(prefix=True), eos_ids=[]),
    "metaspace": Tokenizer(metaspace(), eos_ids=[]),
}
END = BYTES.encode("<|end|>")[0]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(
    st.sampled_from("ab thé€😀\n\ufffd"), max_size=40
)
cuts = st.lists(st.integers(1, 4), max_size=60)


def chunks(ids: Sequence[int], sizes: list[int]) -> list[Sequence[int]]:
    parts, at = [], 0
    for size in sizes:
        parts.append(ids[at : at + size])
        at += size
    return [*parts, ids[at:]]


def stream(detokenizer: Detokenizer, parts: list[Sequence[int]]) -> str:
    return "".join([detokenizer.push(part) for part in parts]) + detokenizer.flush()


def cut(text: str, stops: Sequence[str], include: bool) -> tuple[str, str | None]:
    """What must come out: the text up to the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            stop = max(ended, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(text=texts, sizes=cuts)
def test_stream_of_a_text_is_the_text(name: str, text: str, sizes: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    if name.startswith("byte"):
        assert whole == text
    assert stream(Detokenizer(tokenizer), chunks(ids, sizes)) == whole


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 262), max_size=40), sizes=cuts, skip=st.booleans())
def test_stream_of_any_tokens_is_their_decoding(
    ids: list[int], sizes: list[int], skip: bool
) -> None:
    detokenizer = Detokenizer(BYTES, skip_special_tokens=skip)
    expected = byte_level().decode(ids, skip_special_tokens=skip)
    assert stream(detokenizer, chunks(ids, sizes)) == expected


@settings(max_examples=500, deadline=None)
@given(
    text=st.text(st.sampled_from("ab é€"), max_size=30),
    stops=st.lists(st.text(st.sampled_from("ab é€"), min_size=1, max_size=5), max_size=4),
    sizes=cuts,
    include=st.booleans(),
)
def test_stop_strings(text: str, stops: list[str], sizes: list[int], include: bool) -> None:
    detokenizer = Detokenizer(BYTES, stop=stops, include_stop=include)
    ids = BYTES.encode(text)
    expected, stop = cut(text, stops, include)
    sent = ""
    for part in chunks(ids, sizes):
        sent += detokenizer.push(part)
        assert expected.startswith(sent)  # nothing is ever taken back
    assert sent + detokenizer.flush() == expected
    assert detokenizer.stopped == stop


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("ab"), max_size=30))
def test_no_part_of_a_possible_stop_is_sent(text: str) -> None:
    stops = ["aab", "babaa", "abaaba"]
    detokenizer = Detokenizer(BYTES, stop=stops)
    sent = ""
    for at, token in enumerate(BYTES.encode(text), start=1):
        sent += detokenizer.push([token])
        if detokenizer.stopped:
            break
        held = text[len(sent) : at]
        assert text[:at].startswith(sent)
        # Exactly the longest end that begins a stop string is held.
        ends = [text[i:at] for i in range(at)]
        assert held == next((e for e in ends if any(s.startswith(e) for s in stops)), "")


def test_half_a_character_waits() -> None:
    detokenizer = Detokenizer(BYTES)
    euro = [0xE2, 0x82, 0xAC]
    assert [detokenizer.push([byte]) for byte in euro] == ["", "", "€"]
    assert detokenizer.push(euro[:2]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_invalid_bytes_do_not_wait_for_ever() -> None:
    detokenizer = Detokenizer(BYTES)
    assert detokenizer.push([0xFF]) == "\ufffd"
    assert detokenizer.push([0xE2]) == ""
    assert detokenizer.push([0x41]) == "\ufffdA"


def test_first_complete_stop_wins_however_tokens_come() -> None:
    ids = BYTES.encode("abcd")
    for sizes in ([1, 1, 1, 1], [4], [2, 2], [3, 1]):
        detokenizer = Detokenizer(BYTES, stop=["abcd", "bc"])
        assert stream(detokenizer, chunks(ids, sizes)) == "a"
        assert detokenizer.stopped == "bc"


def test_nothing_comes_after_a_stop() -> None:
    detokenizer = Detokenizer(BYTES, stop=["b"])
    assert detokenizer.push(BYTES.encode("abc")) == "a"
    assert detokenizer.push(BYTES.encode("more")) == ""
    assert detokenizer.flush() == ""


def test_stop_found_at_the_end_by_flush() -> None:
    detokenizer = Detokenizer(BYTES, stop=["x\ufffd"])
    assert detokenizer.push([*b"ax", 0xE2]) == "a"
    assert detokenizer.flush() == ""
    assert detokenizer.stopped == "x\ufffd"


def test_unfinished_stop_is_sent_at_the_end() -> None:
    detokenizer = Detokenizer(BYTES, stop=["stop"])
    assert detokenizer.push(BYTES.encode("go sto")) == "go "
    assert detokenizer.flush() == "sto"
    assert detokenizer.flush() == ""
    assert detokenizer.stopped is None


def test_special_tokens_are_left_out_or_shown() -> None:
    ids = [*BYTES.encode("a"), END, *BYTES.encode("b")]
    assert Detokenizer(BYTES).push(ids) == "ab"
    assert Detokenizer(BYTES, skip_special_tokens=False).push(ids) == "a<|end|>b"


def test_special_token_inside_a_character_leaves_it_whole() -> None:
    assert stream(Detokenizer(BYTES), [[0xE2], [END], [0x82, 0xAC]]) == "€"


def test_first_space_alone_is_dropped() -> None:
    tokenizer = TOKENIZERS["byte fallback, prefix"]
    ids = tokenizer.encode(" the the")
    detokenizer = Detokenizer(tokenizer)
    assert stream(detokenizer, [[i] for i in ids]) == " the the" == tokenizer.decode(ids)
