"""Tensors on their way to a device: all bytes arrive, the host holds little, errors are clear."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inferplane.checkpoint import staging as module
from inferplane.checkpoint.safetensors import SafetensorsTensors
from inferplane.checkpoint.staging import BUFFERS, Staging, read_at
from inferplane.errors import ModelError
from inferplane.hw import DeviceInfo
from inferplane.testing.null import NullDevice, NullSettings
from inferplane.weights import CheckpointWeights

PART = 64


def device(asynchronous: bool = True) -> NullDevice:
    """Its copies read host buffers when an event is waited for, and complain if one has changed."""
    info = DeviceInfo(backend="null", torch_device="cpu", name="null device")
    return NullDevice(info, NullSettings(asynchronous=asynchronous))


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("weights")]


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    wide = torch.randn(70, 33, generator=made)
    return {
        "wide": wide,
        "half": wide.bfloat16(),
        "bytes": (wide * 50).to(torch.int8),
        "eight": wide.to(torch.float8_e4m3fn),
        "long": (wide * 1e6).long(),
        "flags": wide > 0,
        "one": torch.tensor(3.5),
        "none": torch.empty(0, 4),
        "exact": torch.arange(2 * PART, dtype=torch.uint8),
    }


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("asynchronous", [False, True])
def test_all_types_and_sizes_arrive(
    folder: Path, tensors: dict[str, torch.Tensor], asynchronous: bool
) -> None:
    source = SafetensorsTensors(folder)
    way = Staging(device(asynchronous), 1 << 20, PART)
    source.stage(way)
    for name, wanted in tensors.items():
        got = source[name]
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), name
        assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8)) if got.ndim else True
        assert torch.equal(way.send(wanted).double(), wanted.double()), name
    assert source["one"].item() == 3.5
    assert torch.equal(way.send(tensors["wide"].t()), tensors["wide"].t())
    assert threads()
    way.close()
    assert threads() == []


def test_types_of_the_package_alone_are_sent(tmp_path: Path) -> None:
    wanted = torch.tensor([1, 2**15 + 3], dtype=torch.uint16)
    save_file({"w": wanted}, tmp_path / "model.safetensors")
    source = SafetensorsTensors(tmp_path)
    way = Staging(device(), 8, PART)
    source.stage(way)
    assert torch.equal(way.send(source["w"]), wanted)
    way.close()


def test_the_host_holds_no_more_than_the_buffers(
    folder: Path, tensors: dict[str, torch.Tensor]
) -> None:
    where = device()
    asked: list[int] = []
    plain = where.host_buffer

    def counted(elements: int, dtype: str) -> torch.Tensor:
        asked.append(elements)
        return plain(elements, dtype)

    where.host_buffer = counted  # type: ignore[method-assign]
    way = Staging(where, 1 << 20, PART)
    source = SafetensorsTensors(folder)
    source.stage(way)
    for name in tensors:
        source[name]
    assert asked == [PART] * BUFFERS
    assert tensors["wide"].nbytes > 2 * sum(asked)
    way.close()
    small = Staging(where, PART + 1, PART)
    assert len(asked) == BUFFERS + 2
    small.close()


def test_a_buffer_that_is_filled_too_early_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the null device barks if buffers are used again before they were read."""
    where = device()
    way = Staging(where, 4 * PART, PART)
    monkeypatch.setattr(where, "record", lambda: None)
    source = SafetensorsTensors(folder)
    source.stage(way)
    source["wide"]
    with pytest.raises(Exception, match="had yet to read"):
        where.synchronize()
    way.close()


def test_a_file_that_shrinks_is_an_error_and_threads_end(folder: Path) -> None:
    path = folder / "model.safetensors"
    source = SafetensorsTensors(folder)
    way = Staging(device(), 1 << 20, PART)
    source.stage(way)
    assert "wide" in source  # the file is open
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ModelError, match=r"model\.safetensors ends at byte .* fetch it again"):
        for name in source.names():
            source[name]
    assert len(way._ring) == BUFFERS
    way.close()
    assert threads() == []


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    way = Staging(device(), 1, PART)
    with pytest.raises(ModelError, match=r"gone cannot be read: .*No such file"):
        way.read(tmp_path / "gone", 0, torch.uint8, [1])
    with pytest.raises(ModelError, match=r"cannot be read at byte 0: .*directory"):
        way.read(tmp_path, 0, torch.uint8, [1])
    way.close()


def test_an_interrupt_ends_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = device()
    way = Staging(where, 1 << 20, PART)
    calls = iter([None, None, KeyboardInterrupt])

    def record() -> Any:
        if next(calls) is not None:
            raise KeyboardInterrupt
        return NullDevice.record(where)

    monkeypatch.setattr(where, "record", record)
    with pytest.raises(KeyboardInterrupt):
        way.send(torch.ones(1000))
    assert len(way._ring) == BUFFERS
    monkeypatch.undo()
    way.close()
    assert threads() == []


def test_reads_that_come_in_pieces_are_put_together(
    folder: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = module.os.preadv

    def pieces(file: int, buffers: list[memoryview], offset: int) -> int:
        return whole(file, [buffers[0][:7]], offset)

    monkeypatch.setattr(module.os, "preadv", pieces)
    way = Staging(device(), 1 << 20, PART)
    source = SafetensorsTensors(folder)
    source.stage(way)
    assert torch.equal(source["wide"], tensors["wide"])
    way.close()


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (0, "short ends at byte 11, a tensor needs 5 more: "),
        (OSError("gone"), "short cannot be read at byte 11: gone"),
    ],
)
def test_a_read_that_stops_halfway_says_where(
    then: int | OSError, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([4, 3, then])

    def preadv(file: int, buffers: list[memoryview], offset: int) -> int:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(module.os, "preadv", preadv)
    with pytest.raises(ModelError, match=message):
        read_at(0, Path("short"), 4, bytearray(12))


def test_weights_go_through_it(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    way = Staging(device(), 1 << 20, PART)
    weights = CheckpointWeights(SafetensorsTensors(folder), "float32", "cpu", staging=way)
    assert torch.equal(weights.take("half", [70, 33]), tensors["half"].float())
    way.close()
