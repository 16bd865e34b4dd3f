"""The file of packed weights: what comes back, and that no damaged byte is ever used."""

import errno
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inferplane.checkpoint import packed_file
from inferplane.checkpoint.packed_file import DamagedError, read_packed, write_packed

DTYPES = (torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.float8_e4m3fn)


def groups(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Every type, odd sizes, none at all, a number, and a transposed matrix."""
    generator = torch.Generator().manual_seed(seed)
    made = {
        str(kind): {"weight": (100 * torch.randn(7, 3, generator=generator)).to(kind)}
        for kind in DTYPES
    }
    made["others"] = {
        "turned": torch.randn(50, 9, generator=generator).t(),
        "none": torch.empty(0, 4),
        "number": torch.tensor(0.125, dtype=torch.float64),
    }
    return made


def same(got: dict[str, dict[str, Tensor]], wanted: dict[str, dict[str, Tensor]]) -> bool:
    if {k: list(v) for k, v in got.items()} != {k: list(v) for k, v in wanted.items()}:
        return False
    return all(
        one.dtype == two.dtype
        and one.shape == two.shape
        and packed_file._bytes(one) == packed_file._bytes(two)
        for key, group in wanted.items()
        for one, two in zip(got[key].values(), group.values(), strict=True)
    )


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.packed"
    write_packed(path, groups())
    got = read_packed(path)
    assert same(got, groups())
    assert not same(got, groups(1))
    assert all(t.data_ptr() % 64 == 0 for g in got.values() for t in g.values())
    assert os.listdir(tmp_path) == ["a.packed"]
    write_packed(path, {})
    assert read_packed(path) == {}


def test_a_file_of_several_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of pieces that tensors cross; the last one has a piece of its own."""
    monkeypatch.setattr(packed_file, "_PIECE", 100)
    path = tmp_path / "a.packed"
    write_packed(path, groups())
    assert same(read_packed(path), groups())
    whole = path.read_bytes()
    at = int.from_bytes(whole[16:24], "little")
    for place in (64, 163, 164, at - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedError, match="tensors"):
            read_packed(path)


def test_writing_to_a_view_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.packed"
    write_packed(path, groups())
    read_packed(path)["others"]["turned"].zero_()
    assert same(read_packed(path), groups())


def test_every_flipped_bit_and_every_length_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.packed"
    write_packed(path, groups())
    whole = path.read_bytes()
    for place in [*range(64), *range(64, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(DamagedError):
            read_packed(path)
    for length in [*range(70), *range(70, len(whole), 41), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            read_packed(path)
    for wrong in (whole + b"\0", bytes(len(whole)), whole[: len(whole) // 2] * 2):
        path.write_bytes(wrong)
        with pytest.raises(DamagedError):
            read_packed(path)
    path.write_bytes(whole)
    assert same(read_packed(path), groups())


def test_no_file_and_no_right_to_read_are_other_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_packed(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read_packed(tmp_path)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    """Past a limit on the size of files, as when the file system is full."""
    path = tmp_path / "a.packed"
    write_packed(path, groups())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OSError) as raised:
            write_packed(path, {"a": {"weight": torch.zeros(2 << 20, dtype=torch.uint8)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == ["a.packed"]
    assert same(read_packed(path), groups())


def test_readers_among_writers_see_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.packed"
    write_packed(path, groups())

    def use(turn: int) -> bool:
        if turn % 2:
            write_packed(path, groups(turn % 4))
            return True
        got = read_packed(path)
        return any(same(got, groups(seed)) for seed in range(4))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(64)))
    assert os.listdir(tmp_path) == ["a.packed"]
