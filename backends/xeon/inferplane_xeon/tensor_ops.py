"""torch operations that a recorded step does natively: copies, gathers, scatters, and arithmetic on
vectors of int32. Each function takes the recording's allocator and the operation's arguments, and
returns NotImplemented for arguments that are for torch.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from inferplane_xeon.kernels import library

if TYPE_CHECKING:
    from torch import Tensor

Empty = Callable[[Any, "torch.dtype"], "Tensor"]
MOST_DIMENSIONS = 4
CONVERSIONS = {(torch.int32, torch.int64): 1, (torch.int64, torch.int32): 2}
ADD, SUBTRACT, MULTIPLY, FLOOR_DIVIDE, EQUAL, LESS, CHOOSE = range(7)
INDICES = (torch.int32, torch.int64)


def copy(target: "Tensor", source: "Tensor") -> Any:
    conversion = CONVERSIONS.get((source.dtype, target.dtype))
    if source.dtype == target.dtype:
        conversion = 0
    if conversion is None or target.dim() > MOST_DIMENSIONS:
        return NotImplemented
    source = source.expand_as(target)
    spare = MOST_DIMENSIONS - target.dim()
    library().copy_elements(
        source.data_ptr(),
        target.data_ptr(),
        *([1] * spare + list(target.shape)),
        *([0] * spare + [s * source.element_size() for s in source.stride()]),
        *([0] * spare + [s * target.element_size() for s in target.stride()]),
        source.element_size(),
        conversion,
    )
    return target


def _copy(empty: Empty, target: "Tensor", source: "Tensor", non_blocking: bool = False) -> Any:
    return copy(target, source)


def _clone(empty: Empty, source: "Tensor", memory_format: Any = None) -> Any:
    kept = memory_format in (None, torch.preserve_format)
    if memory_format is not torch.contiguous_format and not (kept and source.is_contiguous()):
        return NotImplemented
    return copy(empty(source.shape, source.dtype), source)


def _to_copy(
    empty: Empty, source: "Tensor", dtype: "torch.dtype | None" = None, **other: Any
) -> Any:
    if not source.is_contiguous() or any(value not in (None, False) for value in other.values()):
        return NotImplemented
    return copy(empty(source.shape, dtype or source.dtype), source)


def _block(table: "Tensor", leading: int) -> int | None:
    """Bytes of an entry of the table's leading dimensions; None if it does not lie together."""
    expected = 1
    for size, stride in zip(
        table.shape[: leading - 1 : -1], table.stride()[: leading - 1 : -1], strict=True
    ):
        if size != 1 and stride != expected:
            return None
        expected *= size
    return expected * table.element_size()


def _indexed(table: "Tensor", indices: "list[Tensor | None]") -> tuple[int, ...] | None:
    """The words of a gather's or scatter's indices and table; None for what is not native."""
    if not 1 <= len(indices) <= 2 or any(i is None for i in indices):
        return None
    first, *rest = indices
    assert first is not None
    block = _block(table, len(indices))
    if block is None or first.dtype not in INDICES:
        return None
    for index in indices:
        assert index is not None
        if index.shape != first.shape or index.dtype != first.dtype or not index.is_contiguous():
            return None
    if first.dim() != 1:
        return None
    size = table.element_size()
    strides = [s * size for s in table.stride()[: len(indices)]] + [0]
    second = rest[0].data_ptr() if rest and rest[0] is not None else 0
    return first.data_ptr(), second, len(first), block, *strides[:2]


def _gather(empty: Empty, table: "Tensor", indices: "list[Tensor | None]") -> Any:
    words = _indexed(table, indices)
    if words is None or indices[0] is None:
        return NotImplemented
    index = indices[0]
    out = empty((len(index), *table.shape[len(indices) :]), table.dtype)
    wide = index.dtype == torch.int64
    library().gather(table.data_ptr(), out.data_ptr(), *words, words[3], wide)
    return out


def _index_select(empty: Empty, table: "Tensor", dim: int, index: "Tensor") -> Any:
    return _gather(empty, table, [index]) if dim == 0 else NotImplemented


def _index_put(
    empty: Empty,
    table: "Tensor",
    indices: "list[Tensor | None]",
    values: "Tensor",
    accumulate: bool = False,
) -> Any:
    words = _indexed(table, indices)
    if words is None or accumulate or indices[0] is None or values.dtype != table.dtype:
        return NotImplemented
    index = indices[0]
    if values.shape != (len(index), *table.shape[len(indices) :]) or _block(values, 1) is None:
        return NotImplemented
    stride = values.stride(0) * values.element_size()
    wide = index.dtype == torch.int64
    library().scatter(table.data_ptr(), values.data_ptr(), *words, stride, wide)
    return table


def _vector(x: Any, count: int) -> tuple[int, int] | None:
    """(address, stride) of a vector of int32."""
    if not isinstance(x, torch.Tensor) or x.dtype != torch.int32 or x.dim() != 1:
        return None
    if len(x) not in (1, count):
        return None
    return x.data_ptr(), x.stride(0) if len(x) == count else 0


def _arithmetic(empty: Empty, kind: int, a: Any, b: Any, condition: "Tensor | None" = None) -> Any:
    shaped = [x for x in (condition, a, b) if isinstance(x, torch.Tensor) and x.dim() == 1]
    count = max((len(x) for x in shaped), default=0)
    first = _vector(a, count)
    second = (0, 0) if type(b) is int and -(2**31) <= b < 2**31 else _vector(b, count)
    if first is None or second is None or not count:
        return NotImplemented
    chosen = (0, 0)
    if condition is not None:
        if condition.shape != (count,) or condition.dtype != torch.bool:
            return NotImplemented
        chosen = condition.data_ptr(), condition.stride(0)
    out = empty((count,), torch.bool if kind in (EQUAL, LESS) else torch.int32)
    library().arithmetic(
        chosen[0],
        first[0],
        second[0],
        out.data_ptr(),
        count,
        kind,
        chosen[1],
        first[1],
        second[1],
        b if type(b) is int else 0,
    )
    return out


def _two(kind: int) -> Callable[..., Any]:
    def run(empty: Empty, a: Any, b: Any, **other: Any) -> Any:
        return NotImplemented if other else _arithmetic(empty, kind, a, b)

    return run


def _divide(empty: Empty, a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode != "floor" or b == 0:
        return NotImplemented
    return _arithmetic(empty, FLOOR_DIVIDE, a, b)


def _where(empty: Empty, condition: "Tensor", a: Any, b: Any) -> Any:
    return _arithmetic(empty, CHOOSE, a, b, condition)


_aten = torch.ops.aten
NATIVE: dict[Any, Callable[..., Any]] = {
    _aten.copy_.default: _copy,
    _aten.clone.default: _clone,
    _aten._to_copy.default: _to_copy,
    _aten.index.Tensor: _gather,
    _aten.index_select.default: _index_select,
    _aten.index_put_.default: _index_put,
    _aten.add.Tensor: _two(ADD),
    _aten.sub.Tensor: _two(SUBTRACT),
    _aten.mul.Tensor: _two(MULTIPLY),
    _aten.div.Tensor_mode: _divide,
    _aten.eq.Scalar: _two(EQUAL),
    _aten.lt.Tensor: _two(LESS),
    _aten.lt.Scalar: _two(LESS),
    _aten.where.self: _where,
}
