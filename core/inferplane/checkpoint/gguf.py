"""Reader of GGUF files, versions 2 and 3. Memory-maps the file and checks every length in it.

Knows the container only: not what a key or a tensor name means, nor how blocks are decoded.
Layout: magic, version, counts, key/value pairs, tensor descriptions, padding, tensor data.
"""

import hashlib
import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferplane.checkpoint.identity import FileState
from inferplane.errors import ModelError

STRING, ARRAY = 8, 9
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""value type -> struct code; types 8 and 9 are strings and arrays"""

MAX_NAME_BYTES = 65535
MAX_DIMS = 4


@dataclass(frozen=True)
class TensorType:
    """How a tensor's values are packed: `block` values in `size` bytes."""

    name: str
    block: int
    size: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    8: TensorType("Q8_0", 32, 34),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
}

OTHER_TYPES = {7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 20: "IQ4_NL", 23: "IQ4_XS"}
"""types that exist and that we cannot read: only to name them in the error"""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` is outermost first, as in torch; the file has it reversed."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class _ArrayRef:
    """An array that is decoded only when asked for: a vocabulary has 10**5 entries."""

    type: int
    count: int
    offset: int


class GgufFile:
    """One open file: `get(key)` for metadata, `tensors` for the descriptions, `raw` for bytes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self.state = FileState.of(os.fstat(file.fileno()))
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.path} cannot be read: {error}") from error
        self._values: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        cursor = _Cursor(self._map, self.path)
        tensor_count, value_count = self._read_header(cursor)
        for _ in range(value_count):
            self._read_pair(cursor)
        self._metadata_end = cursor.at
        self._read_tensors(cursor, tensor_count)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def keys(self) -> list[str]:
        return list(self._values)

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value; arrays come as lists and are decoded at each call."""
        value = self._values.get(key, default)
        if isinstance(value, _ArrayRef):
            cursor = _Cursor(self._map, self.path, value.offset)
            if value.type == STRING:
                return cursor.strings(value.count)
            return cursor.numbers(value.type, value.count)
        return value

    def length(self, key: str) -> int:
        """Number of entries of an array, without decoding it; 0 if there is none."""
        value = self._values.get(key)
        return value.count if isinstance(value, _ArrayRef) else 0

    def raw(self, name: str) -> memoryview:
        """The packed bytes of a tensor, a view of the file."""
        info = self.tensors[name]
        return memoryview(self._map)[info.offset : info.offset + info.nbytes]

    def release(self) -> None:
        """Give back the memory of what was read; it is read again when asked for."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def metadata_digest(self) -> str:
        """SHA-256 of all metadata, vocabulary included: equal digests have equal vocabularies."""
        with memoryview(self._map) as view, view[: self._metadata_end] as part:
            return hashlib.sha256(part).hexdigest()

    def _read_header(self, cursor: "_Cursor") -> tuple[int, int]:
        magic = cursor.take(4, "magic")
        if magic != b"GGUF":
            raise cursor.error(f"starts with {magic!r}, not b'GGUF': it is not a GGUF file", 0)
        version = cursor.number(4)
        if version not in (2, 3):
            hint = ", perhaps big-endian" if version > 0xFFFF else ""
            raise cursor.error(f"GGUF version {version}{hint}, only 2 and 3 are read", 4)
        tensor_count, value_count = cursor.number(10), cursor.number(10)
        # The smallest description has 24 bytes, the smallest pair 13.
        cursor.expect(tensor_count * 24 + value_count * 13, f"{tensor_count} tensors")
        return tensor_count, value_count

    def _read_pair(self, cursor: "_Cursor") -> None:
        start = cursor.at
        key = cursor.string(MAX_NAME_BYTES)
        if key in self._values:
            raise cursor.error(f"metadata key {key!r} appears twice", start)
        kind = cursor.number(4)
        if kind == STRING:
            self._values[key] = cursor.string()
        elif kind == ARRAY:
            self._values[key] = cursor.skip_array(key)
        elif kind in SCALARS:
            self._values[key] = cursor.number(kind)
        else:
            raise cursor.error(f"metadata key {key!r} has unknown value type {kind}", start)

    def _read_tensors(self, cursor: "_Cursor", count: int) -> None:
        described = [self._read_tensor(cursor) for _ in range(count)]
        alignment = self._values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment > 2**20:
            raise cursor.error(f"general.alignment is {alignment!r}", 0)
        data = -(-cursor.at // alignment) * alignment
        for info, at in described:
            offset = data + info.offset
            if info.offset % alignment or offset + info.nbytes > len(self._map):
                raise cursor.error(
                    f"tensor {info.name!r} needs bytes {offset} to {offset + info.nbytes}, but the"
                    f" file has {len(self._map)} (alignment {alignment}): truncated or damaged",
                    at,
                )
            if info.name in self.tensors:
                raise cursor.error(f"tensor {info.name!r} appears twice", at)
            self.tensors[info.name] = TensorInfo(
                info.name, info.shape, info.type, offset, info.nbytes
            )

    def _read_tensor(self, cursor: "_Cursor") -> tuple[TensorInfo, int]:
        start = cursor.at
        name = cursor.string(MAX_NAME_BYTES)
        dims = cursor.number(4)
        if not 1 <= dims <= MAX_DIMS:
            raise cursor.error(f"tensor {name!r} has {dims} dimensions, must be 1 to 4", start)
        shape = tuple(reversed([cursor.number(10) for _ in range(dims)]))
        code = cursor.number(4)
        offset = cursor.number(10)
        if code not in TENSOR_TYPES:
            supported = ", ".join(t.name for t in TENSOR_TYPES.values())
            raise cursor.error(
                f"tensor {name!r} has type {OTHER_TYPES.get(code, code)}, supported: {supported}",
                start,
            )
        kind = TENSOR_TYPES[code]
        if min(shape) < 1 or shape[-1] % kind.block:
            raise cursor.error(
                f"tensor {name!r} has shape {list(shape)}, {kind.name} needs rows of a multiple of"
                f" {kind.block}",
                start,
            )
        nbytes = math.prod(shape) // kind.block * kind.size
        return TensorInfo(name, shape, kind, offset, nbytes), start


class _Cursor:
    """A position in the file that never reads past the end."""

    def __init__(self, data: mmap.mmap, path: Path, at: int = 0) -> None:
        self.data = data
        self.path = path
        self.at = at

    def error(self, what: str, offset: int) -> ModelError:
        return ModelError(f"{self.path}, offset {offset}: {what}")

    def expect(self, count: int, what: str) -> None:
        """Check that `count` more bytes exist before anything of that size is allocated."""
        left = len(self.data) - self.at
        if count > left:
            raise self.error(
                f"{what} needs {count} bytes, {left} are left: truncated or damaged", self.at
            )

    def take(self, count: int, what: str) -> bytes:
        self.expect(count, what)
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: int) -> Any:
        code = "<" + SCALARS[kind]
        size = struct.calcsize(code)
        self.expect(size, "a value")
        self.at += size
        return struct.unpack_from(code, self.data, self.at - size)[0]

    def numbers(self, kind: int, count: int) -> list[Any]:
        code = f"<{count}{SCALARS[kind]}"
        return list(struct.unpack_from(code, self.data, self.at))

    def string(self, limit: int = 2**63) -> str:
        start = self.at
        length = self.number(10)
        if length > limit:
            raise self.error(f"a name of {length} bytes, at most {limit}", start)
        try:
            return self.take(length, "a string").decode()
        except UnicodeDecodeError as error:
            raise self.error("a string is not valid UTF-8", start) from error

    def strings(self, count: int) -> list[str]:
        """An array that `skip_array` has checked: a vocabulary is read at each start, twice."""
        length_at = struct.Struct("<Q").unpack_from
        data, at, found = self.data, self.at, []
        for _ in range(count):
            start = at + 8
            at = start + length_at(data, at)[0]
            try:
                found.append(data[start:at].decode())
            except UnicodeDecodeError as error:
                raise self.error("a string is not valid UTF-8", start - 8) from error
        return found

    def skip_array(self, key: str) -> _ArrayRef:
        start = self.at
        kind, count = self.number(4), self.number(10)
        ref = _ArrayRef(kind, count, self.at)
        if kind == STRING:
            self.expect(8 * count, f"{key!r} with {count} strings")
            self._skip_strings(count)
        elif kind in SCALARS:
            size = count * struct.calcsize("<" + SCALARS[kind])
            self.expect(size, f"{key!r} with {count} values")
            self.at += size
        else:
            raise self.error(f"array {key!r} has element type {kind}, which is not read", start)
        return ref

    def _skip_strings(self, count: int) -> None:
        length_at = struct.Struct("<Q").unpack_from
        data, last, at = self.data, len(self.data) - 8, self.at
        for _ in range(count):
            if at > last:
                break
            at += 8 + length_at(data, at)[0]
        else:
            if at <= len(self.data):
                self.at = at
                return
        raise self.error("the file ends inside an array of strings: truncated", self.at)
