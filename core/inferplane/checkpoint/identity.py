"""Whether the files of a checkpoint are still those that something was made from."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HEAD_BYTES = 64 * 1024
SAMPLES, SAMPLE_BYTES = 63, 4096


@dataclass(frozen=True, slots=True)
class FileState:
    """What the file system says of a file. The change time is not settable, so that it tells of
    writes that left size and modification time as they were."""

    size: int
    modified_ns: int
    changed_ns: int

    @staticmethod
    def of(stat: os.stat_result) -> "FileState":
        return FileState(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def identity(files: Iterable[tuple[Path, FileState]]) -> str | None:
    """A digest of the states of files and of samples of their contents; None if one of them is no
    longer in the state that it was opened in.

    The samples, the head and 63 pages spread over the file, tell apart models that images and
    archives give the same size and times. Reading all of it would take longer than packing it.
    """
    digest = hashlib.sha256()
    for path, state in files:
        try:
            with open(path, "rb") as file:
                if FileState.of(os.fstat(file.fileno())) != state:
                    return None
                digest.update(repr(state).encode())
                digest.update(file.read(HEAD_BYTES))
                for sample in range(1, SAMPLES + 1):
                    file.seek(max(0, state.size - SAMPLE_BYTES) * sample // SAMPLES)
                    digest.update(file.read(SAMPLE_BYTES))
        except OSError:
            return None
    return digest.hexdigest()
