"""A file of named groups of tensors that is mapped, and whose every byte is checked before.

    64 bytes    magic, place and length of the index, SHA-256 of the index
    tensors     each at a multiple of 64, zeros between them
    index       JSON with the SHA-256 of each 8 MiB of the tensors, and what lies where

Written beside its place and renamed, so that readers see whole files only. It is not synced: a
file that a crash left torn fails its digests. Knows nothing of what the tensors are for.
"""

import hashlib
import mmap
import os
import struct
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from torch import Tensor

Groups = dict[str, "dict[str, Tensor]"]

PART = ".part"
"""end of the name of a file that is being written"""

_HEAD = struct.Struct("<16sQQ32s")
_MAGIC = b"inferplane pack1"
_ALIGN, _PIECE = 64, 8 << 20


class DamagedError(ValueError):
    """The file is not what was written."""


class _Stored(msgspec.Struct):
    dtype: str
    shape: list[int]
    at: int


class _Index(msgspec.Struct):
    sha256: list[str]
    groups: dict[str, dict[str, _Stored]]


def read_packed(path: Path) -> Groups:
    """The tensors, as views of the file: pages are shared by all processes that map it. Nobody may
    write to them; who does so anyway changes a page of its own, never the file.

    All of the file is read once and checked. OSError if it cannot be read, DamagedError if any
    byte is not as it was written.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < _HEAD.size:
            raise DamagedError("it is too short")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    magic, at, length, digest = _HEAD.unpack_from(mapped)
    if magic != _MAGIC or not _HEAD.size <= at <= len(mapped) or at + length != len(mapped):
        raise DamagedError("its length or its first bytes are wrong")
    written = mapped[at:]
    if hashlib.sha256(written).digest() != digest:
        raise DamagedError("the digest of its index is wrong")
    try:
        index = msgspec.json.decode(written, type=_Index)
        groups = {
            key: {name: _view(mapped, stored) for name, stored in group.items()}
            for key, group in index.groups.items()
        }
    except (msgspec.DecodeError, ValueError, RuntimeError) as error:
        raise DamagedError(f"its index makes no sense: {error}") from error
    if _digests(mapped, at) != index.sha256:
        raise DamagedError("the digest of its tensors is wrong")
    return groups


def write_packed(path: Path, groups: "Mapping[str, Mapping[str, Tensor]]") -> None:
    """Write host tensors. Many processes may write the same file: the last one's stays. OSError
    leaves what was there before."""
    index = _Index([], {})
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=PART, delete=False) as file:
        try:
            at = _HEAD.size
            for key, group in groups.items():
                placed = index.groups[key] = {}
                for name, tensor in group.items():
                    file.seek(at)
                    file.write(_bytes(tensor))
                    kind = str(tensor.dtype).removeprefix("torch.")
                    placed[name] = _Stored(kind, list(tensor.shape), at)
                    at += -(-tensor.nbytes // _ALIGN) * _ALIGN
            file.truncate(at)
            file.flush()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                index.sha256 = _digests(mapped, at)
            written = msgspec.json.encode(index)
            file.seek(at)
            file.write(written)
            file.seek(0)
            file.write(_HEAD.pack(_MAGIC, at, len(written), hashlib.sha256(written).digest()))
            file.close()
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _digests(mapped: mmap.mmap, end: int) -> list[str]:
    """Of each piece of the tensors, on all cores: hashing releases the interpreter lock."""
    with memoryview(mapped) as view, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

        def digest(start: int) -> str:
            with view[start : min(start + _PIECE, end)] as piece:
                return hashlib.sha256(piece).hexdigest()

        return list(pool.map(digest, range(_HEAD.size, end, _PIECE)))


def _bytes(tensor: "Tensor") -> memoryview:
    import torch

    flat = tensor.detach().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def _view(mapped: mmap.mmap, stored: _Stored) -> "Tensor":
    import torch

    kind = getattr(torch, stored.dtype, None)
    if not isinstance(kind, torch.dtype):
        raise DamagedError(f"it has tensors of type {stored.dtype}")
    count = 1
    for size in stored.shape:
        count *= size
    if not count:
        return torch.empty(stored.shape, dtype=kind)
    return torch.frombuffer(mapped, dtype=kind, count=count, offset=stored.at).view(stored.shape)
