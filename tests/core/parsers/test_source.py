"""Reading text that comes in pieces."""

import pytest

from inferplane.parsers.source import OVER, Markers, Reading, Source, markers, stand_ins


def until(text: list[str], wanted: Markers, limit: int | None = None) -> list[str]:
    """What is between markers, and the markers."""
    source = Source()
    found: list[str] = []

    def read() -> Reading[None]:
        while True:
            kept: list[str] = []
            marker = yield from source.until(wanted, kept.append, limit)
            found.extend(["".join(kept), marker])
            if not marker or marker == OVER:
                return

    reading = read()
    next(reading, None)
    for piece in text:
        source.feed(piece)
        next(reading, None)
    source.close()
    next(reading, None)
    return found


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("a[b", ("[", "[X]"), ["a", "[", "b", ""]),
        ("a[X]b", ("[", "[X]"), ["a", "[X]", "b", ""]),
        ("a[X", ("[", "[X]"), ["a", "[", "X", ""]),
        ("xabcdx", ("abcd", "bc"), ["x", "abcd", "x", ""]),
        ("xabcx", ("abcd", "bc"), ["xa", "bc", "x", ""]),
        ("ababac", ("abac",), ["ab", "abac", "", ""]),
    ],
)
def test_leftmost_then_longest(text: str, wanted: tuple[str, ...], found: list[str]) -> None:
    assert until([text], markers(*wanted)) == found
    assert until([*text], markers(*wanted)) == found


@pytest.mark.parametrize("text", ["12345]", "1234]", "12345", "123456"])
def test_limit(text: str) -> None:
    whole = until([text], markers("]"), 4)
    assert until([*text], markers("]"), 4) == whole
    assert whole[:2] == ["1234", "]" if text == "1234]" else OVER]


def test_stand_ins_are_characters_of_their_own() -> None:
    table = stand_ins(["<b>", "<a>", "<a>"])
    assert list(table) == ["<a>", "<b>"]
    assert len(set(table.values())) == 2 and all(len(char) == 1 for char in table.values())
