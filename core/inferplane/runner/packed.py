"""Packed weights that are kept in the cache folder, so that later starts map what this one packed.

One file holds a model's packed weights under the settings that shape them; its name is a digest of
checkpoint, settings and the code that converts. Each weight in it has a digest of that and of how
it is packed. When the folder is full, the files that were used longest ago are removed.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferplane import env
from inferplane.checkpoint.packed_file import PART, DamagedError, read_packed, write_packed
from inferplane.config import Config
from inferplane.hw.device import DeviceInfo
from inferplane.weights import StoredSource, TensorSource

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS = ("dtype", "quantization", "input_quantization", "enable_deterministic_inference", "op")
"""those that change what packed weights a model has"""
SMALLEST = 16 << 20
"""bytes below which packing again is as quick"""
LIMIT = 64 << 30
"""bytes of all files together"""
ROOM = 1 << 30
"""bytes that are left free on the file system"""
ABANDONED_SECONDS = 3600
"""age of an unfinished file that nobody writes any more"""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class PackedWeights:
    """What one start finds, and what it adds."""

    path: Path
    identity: Callable[[], str | None]
    """of the checkpoint, now"""
    checkpoint: str
    """its identity before the first weight was read"""
    found: "dict[str, dict[str, Tensor]]" = field(default_factory=dict)
    used: "dict[str, Mapping[str, Tensor]]" = field(default_factory=dict)
    added: int = 0

    def read(self) -> None:
        """Map the file of an earlier start, if there is one that is whole."""
        try:
            self.found = read_packed(self.path)
            os.utime(self.path)
        except FileNotFoundError:
            pass
        except DamagedError as error:
            log.warning("%s is damaged and not used (%s): packing again", self.path, error)
        except OSError as error:
            log.warning("%s cannot be used (%s): packing again", self.path, error)

    def find(self, key: str) -> "dict[str, Tensor] | None":
        """The tensors of a weight that was packed before."""
        name = self._name(key)
        tensors = self.found.get(name)
        if tensors is not None:
            self.used[name] = tensors
        return tensors

    def add(self, key: str, tensors: "Mapping[str, Tensor]") -> None:
        self.used[self._name(key)] = tensors
        self.added += 1

    def _name(self, key: str) -> str:
        """With what the file is for, so that it gives nothing under another file's name."""
        return _short(f"{self.path.stem} {key}")

    def close(self) -> None:
        """Write what was added, together with what was found and used; called when all weights
        are packed. A file that cannot be written is a warning."""
        used, self.used, self.found = self.used, {}, {}
        if not used:
            return
        size = sum(tensor.nbytes for group in used.values() for tensor in group.values())
        log.info("packed weights: %d mapped, %d packed", len(used) - self.added, self.added)
        if not self.added or size < SMALLEST:
            return
        if self.identity() != self.checkpoint:
            log.warning("the checkpoint changed while it was read: its packed form is not kept")
            return
        folder = self.path.parent
        try:
            if size > LIMIT:
                raise OSError(errno.EFBIG, f"they have {size} bytes, all may have {LIMIT}")
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_room(folder, LIMIT - size, keep=self.path)
            if shutil.disk_usage(folder).free < size + ROOM:
                raise OSError(errno.ENOSPC, f"{size + ROOM} bytes must be free")
            write_packed(self.path, used)
        except OSError as error:
            log.warning(
                "packed weights are not kept in %s, the next start packs again: %s", folder, error
            )


def open_packed(
    config: Config, model: Mapping[str, Any], device: DeviceInfo, tensors: TensorSource
) -> PackedWeights | None:
    """The packed weights of earlier starts; None for checkpoints that are not files."""
    if not isinstance(tensors, StoredSource):
        return None
    checkpoint = tensors.identity()
    if checkpoint is None:
        return None
    try:
        folder = env.cache_dir() / "packed"
    except RuntimeError as error:  # a user without a home, as in some containers
        log.warning("packed weights are not kept (%s): set INFERPLANE_CACHE to a folder", error)
        return None
    import torch

    parts = [checkpoint, dict(model), device.backend, torch.__version__, _conversion()]
    parts += [getattr(config, name) for name in SETTINGS]
    name = _short(json.dumps(parts, sort_keys=True, default=repr))
    packed = PackedWeights(folder / f"{name}.packed", tensors.identity, checkpoint)
    packed.read()
    return packed


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _conversion() -> str:
    """A digest of the code that turns what is stored into what is packed: no version to forget."""
    package = Path(env.__file__).parent
    digest = hashlib.sha256()
    files = [package / "hw/quantization.py", package / "layers.py", package / "weights.py"]
    for path in sorted([*files, *(package / "checkpoint").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _make_room(folder: Path, limit: int, keep: Path) -> None:
    """Remove files until the others have `limit` bytes, first those that were used longest ago."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removes, too
            stat = path.stat()
            if path.suffix == PART and time.time() - stat.st_mtime > ABANDONED_SECONDS:
                path.unlink()
            elif path.suffix == ".packed" and path != keep:
                files.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size
        log.info("removed %s: packed weights may take %d bytes", path, LIMIT)
