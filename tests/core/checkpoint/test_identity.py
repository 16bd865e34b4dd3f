"""Checkpoint files are told apart by what the file system says of them, and by samples."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from inferplane.checkpoint import identity as module
from inferplane.checkpoint.identity import FileState, identity


def states(*paths: Path) -> list[tuple[Path, FileState]]:
    return [(path, FileState.of(os.stat(path))) for path in paths]


def test_the_same_files_are_the_same(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1" * 300_000)
    two.write_bytes(b"2")
    first = identity(states(one, two))
    assert first is not None
    assert identity(states(one, two)) == first
    assert identity(states(one)) != first
    os.utime(one, (1, 1))
    assert identity(states(one, two)) != first


def test_a_file_that_is_no_longer_what_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"1" * 100)
    ((_, opened),) = states(path)
    assert identity([(path, opened)]) is not None
    for name in ("size", "modified_ns", "changed_ns"):
        before = replace(opened, **{name: getattr(opened, name) - 1})
        assert identity([(path, before)]) is None
    path.unlink()
    assert identity([(path, opened)]) is None


@pytest.mark.parametrize("size", [1, 4096, 65_537, 1_000_003])
def test_samples_differ_where_times_do_not(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.FileState, "of", staticmethod(lambda stat: FileState(size, 0, 0)))
    path = tmp_path / "one"
    found = set()
    for at in (None, 0, size // 2 // 4096 * 4096, size - 1):
        contents = bytearray(size)
        if at is not None:
            contents[at : at + 40_000] = b"x" * len(contents[at : at + 40_000])
        path.write_bytes(contents)
        found.add(identity(states(path)))
    assert None not in found
    assert len(found) == len({None, 0, size // 2 // 4096 * 4096, size - 1})
