"""Problems and candidate kernels for linears.py: what is measured, without how."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from inferplane.hw.quantization import Scheme, dequantize, quantize, quantize_input, spread
from inferplane_triton import launch, tuning
from inferplane_triton.attention import next_power
from inferplane_triton.launch import Line, Row, Scratch, Tile
from inferplane_triton.packed import Bytes, Nibbles, pack_bytes, pack_nibbles

FP8 = "float8_e4m3fn"
SCHEMES: dict[str, Scheme | None] = {
    "bf16": None,
    "fp8": Scheme(weight=FP8, activation=FP8),
    "fp8-block": Scheme(weight=FP8, rows=128, group=128, activation=FP8, activation_group=128),
    "int4": Scheme(weight="int4", group=128),
    "int4-g32": Scheme(weight="int4", group=32, asymmetric=True),
    "int8": Scheme(weight="int8", activation="int8"),
}
SHAPES = {
    "8b/qkv": (6144, 4096),
    "8b/o": (4096, 4096),
    "8b/gate_up": (28672, 4096),
    "8b/down": (4096, 14336),
    "8b/head": (128256, 4096),
    "0.6b/qkv": (4096, 1024),
    "0.6b/o": (1024, 2048),
    "0.6b/gate_up": (6144, 1024),
    "0.6b/down": (1024, 3072),
}
ROTATE = 160 << 20
"""bytes of weights to walk through, so that the 50 MB of L2 hold none of the next ones"""
LIMIT = {"bf16": 0.006, "fp8": 0.01, "fp8-block": 0.01, "int4": 0.008, "int8": 0.01}
"""largest relative Frobenius error: results are bf16, and an input value that is nearly halfway
may round to the other side"""

Run = Callable[[int], Any]
"""launches the product with one of the weight copies"""


@dataclass(slots=True)
class Problem:
    kind: str
    shape: str
    rows: int
    device: str
    weights: list[Any] = field(default_factory=list)
    dense: "torch.Tensor | None" = None
    """f32 [N, K]: what the weights stand for"""
    quantized: Any = None
    """INT4 weights before they were packed"""
    columns: int = 0
    width: int = 0

    def __post_init__(self) -> None:
        self.columns, self.width = SHAPES[self.shape]
        torch.manual_seed(hash((self.shape, self.kind)) % 2**31)
        scheme = SCHEMES[self.kind]
        made = torch.randn(self.columns, self.width, device=self.device) / self.width**0.5
        if self.device == "meta":
            self.weights = [_shape_of(self.kind, self.columns, self.width)]
            return
        if scheme is None:
            first: Any = made.bfloat16()
            self.dense = first.float()
        else:
            quantized = quantize(made, scheme)
            if scheme.weight == "int4":  # checkpoints have fp16 scales
                quantized.scale = quantized.scale.half().float()
                if quantized.offset is not None:
                    quantized.offset = quantized.offset.half().float()
                self.quantized = quantized
            self.dense = dequantize(quantized, "float32")
            pack = pack_nibbles if scheme.weight == "int4" else pack_bytes
            first = pack(quantized)
        del made
        copies = max(1, min(64, -(-ROTATE // self.weight_bytes)))
        self.weights = [first, *(_clone(first) for _ in range(copies - 1))]

    @property
    def weight_bytes(self) -> int:
        per = {"bf16": 16, "int4": 4, "int4-g32": 4}.get(self.kind, 8)
        extra = {"int4": 2 / 128 * 8, "int4-g32": 4 / 32 * 8}.get(self.kind, 0.0)
        return int(self.columns * self.width * (per + extra) / 8)

    @property
    def nbytes(self) -> int:
        return self.weight_bytes + 2 * self.rows * (self.columns + self.width)

    def at(self, rows: int) -> "Inputs":
        self.rows = rows
        x = torch.randn(rows, self.width, device=self.device).bfloat16()
        y = torch.empty(rows, self.columns, device=self.device, dtype=torch.bfloat16)
        scheme = SCHEMES[self.kind]
        if self.dense is None:
            return Inputs(x, y, y)
        wide = x.float()
        if scheme and scheme.activation:
            values, scale = quantize_input(x, scheme, None)
            wide = values.float() * spread(scale, scheme.activation_group, values)
        reference = wide @ self.dense.T
        return Inputs(x, y, reference)


@dataclass(slots=True)
class Inputs:
    x: torch.Tensor
    y: torch.Tensor
    reference: torch.Tensor

    def error(self) -> float:
        got, want = self.y.float(), self.reference
        return float((got - want).norm() / want.norm())


def _shape_of(kind: str, columns: int, width: int) -> Any:
    """A weight without data: enough to compile its kernels."""

    def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    scheme = SCHEMES[kind]
    if scheme is None:
        return empty(torch.bfloat16, columns, width)
    if scheme.weight == "int4":
        chunks = width // (4 * scheme.group)
        scale = empty(torch.int64, chunks, columns)
        offset = scale if scheme.asymmetric else None
        numbers = empty(torch.int16, columns, width // 4)
        return Nibbles(numbers, scale, offset, width, scheme.group)
    blocked = bool(scheme.group)
    shape = (columns // 128, width // 128) if blocked else (columns,)
    values = empty(getattr(torch, scheme.weight), columns, width)
    return Bytes(values, empty(torch.float32, *shape), blocked, True, None)


def _clone(weight: Any) -> Any:
    if isinstance(weight, torch.Tensor):
        return weight.clone()
    if isinstance(weight, Bytes):
        return Bytes(
            weight.values.clone(), weight.scale.clone(), weight.blocked, weight.activation,
            weight.input_scale,
        )  # fmt: skip
    offset = None if weight.offset is None else weight.offset.clone()
    return replace(
        weight, numbers=weight.numbers.clone(), scale=weight.scale.clone(), offset=offset
    )


class Shared:
    """Parts and counters, as the ops share them."""

    def __init__(self, device: str) -> None:
        self.part = torch.empty(0, device=device)
        self.count = torch.zeros(1 << 14, dtype=torch.int32, device=device)

    def scratch(self, cut: Tile, rows: int, columns: int) -> Scratch:
        needed = cut.part_bytes(rows, columns) // 4
        if self.part.numel() < needed:
            self.part = torch.empty(needed, device=self.part.device)
        return Scratch(self.part, self.count)


def variants(p: Problem, i: Inputs, shared: Shared) -> Iterator[tuple[str, Run]]:
    """(name, launch); the library's and the op's own choice among them"""
    if p.kind == "bf16":
        yield from _dense(p, i, shared)
    elif p.kind.startswith("int4"):
        yield from _nibbles(p, i, shared)
    else:
        yield from _bytes(p, i, shared)


def _fits(p: Problem, cut: Tile) -> bool:
    return p.columns % cut.rows == 0 and p.width % cut.block == 0 and (
        cut.split == 1 or p.width >= 2 * cut.block * cut.split
    )  # fmt: skip


def _starts(cut: Tile, lines: tuple[int, ...] = (8,)) -> list[Tile]:
    """The tile as it is, starting early, and starting early with W on its way"""
    early = replace(cut, pdl=True, ahead=0)
    return [early, *(replace(early, ahead=n) for n in lines), replace(cut, pdl=False, ahead=0)]


def _dense(p: Problem, i: Inputs, shared: Shared) -> Iterator[tuple[str, Run]]:
    def library(c: int) -> None:
        torch.mm(i.x, p.weights[c].T, out=i.y)

    yield "cublas", library
    shape = p.columns, p.width, tuning.PROCESSORS, False, True
    chosen = launch.line(p.rows, tuning.dense_row(*shape), tuning.dense_several(*shape))
    if chosen:
        lines = [chosen, replace(chosen, pdl=False)]
        for weights, warps, share in itertools.product((4096, 8192, 16384), (4, 8), (2, 4, 8)):
            rows = max(1, weights // next_power(p.width))
            lines.append(Line(rows, share * tuning.PROCESSORS, warps, pdl=True))
        for line in dict.fromkeys(lines):
            yield _name("rows", line), _row(launch.dense_rows, p, i, line)
    if p.rows <= 64:
        own = tuning.dense_few(p.columns, p.width, True)
        cuts_t = [own, *_starts(own, (4, 16))]
        for rows, block, warps, stages in ((64, 128, 4, 5), (64, 256, 4, 3), (32, 128, 4, 5)):
            for split in (1, 2, 4, 8):
                cuts_t += _starts(Tile(rows, block, split, warps, stages))[:2]
        for tile in dict.fromkeys(cuts_t):
            if _fits(p, tile) and _sensible(p, tile):
                yield _name("tile", tile), _dense_tile(p, i, tile, shared)
    invariant = [tuning.invariant(p.rows, p.columns, p.width, True)]
    if p.rows > 64:
        invariant.append(replace(invariant[0], pdl=False))
        for rows, most, warps, stages in ((128, 128, 8, 3), (128, 64, 4, 4), (64, 128, 4, 4)):
            tile = Tile(rows, 64, invariant[0].split, warps, stages, most, 8, True, pdl=True)
            if p.columns % rows == 0:
                invariant.append(tile)
    for tile in dict.fromkeys(invariant):
        yield _name("invariant", tile), _dense_tile(p, i, tile, shared)


def _sensible(p: Problem, cut: Tile) -> bool:
    programs = p.columns // cut.rows * cut.split
    return programs >= 64 and (cut.split == 1 or programs <= 1100)


def _bytes(p: Problem, i: Inputs, shared: Shared) -> Iterator[tuple[str, Run]]:
    blocked = p.kind == "fp8-block"
    q = torch.empty_like(i.x, dtype=p.weights[0].values.dtype)
    groups = p.width // 128 if blocked else 1
    scale = torch.empty(p.rows, groups, device=p.device)

    def prepare(pdl: bool) -> None:
        launch.quantize_rows(i.x, q, scale, None, 128 if blocked else 0, pdl)

    prepare(False)
    if p.rows == 1:
        cuts = []
        for rows, most, warps in (
            (4, 2048, 4), (8, 2048, 4), (2, 2048, 4), (4, 1024, 2), (8, 1024, 2), (1, 2048, 4),
        ):  # fmt: skip
            cuts.append(Row(rows, tuning.divisor(p.width, most), warps, pdl=True))
        for cut in dict.fromkeys(cuts):
            yield _name("row", cut), _row(launch.w8_row, p, i, cut)
    for tile in _bytes_tiles(p, blocked):
        if not _fits(p, tile) or (p.rows <= 64 and not _sensible(p, tile)):
            continue
        if blocked and tile.block != 128:
            continue
        yield _name("quant+tile", tile), _bytes_tile(p, i, tile, shared, (q, scale), prepare)
    yield from _bytes_library(p, i, q, scale, lambda: prepare(True))


def _bytes_tiles(p: Problem, blocked: bool) -> Iterator[Tile]:
    if p.rows <= 64:
        own = tuning.bytes_few(p.rows, p.columns, p.width, blocked, True)
        cuts = [own, *_starts(own, (4, 16))]
        for rows, block, warps, stages in (
            (64, 256, 4, 4), (64, 128, 4, 6), (64, 512, 4, 3), (128, 128, 4, 4),
        ):  # fmt: skip
            for split in (1, 2, 4, 8):
                cuts += _starts(Tile(rows, block, split, warps, stages))[1:2]
    else:
        cuts = [tuning.bytes_many(p.columns, True), tuning.bytes_many(p.columns, False)]
        for rows, most, warps, stages in (
            (128, 128, 8, 4), (128, 128, 4, 3), (64, 128, 4, 4), (128, 64, 4, 4), (128, 256, 8, 3),
        ):  # fmt: skip
            cuts.append(Tile(rows, 128, 1, warps, stages, most, 8, pdl=True))
    yield from dict.fromkeys(cuts)


def _bytes_library(
    p: Problem, i: Inputs, q: torch.Tensor, scale: torch.Tensor, prepare: Callable[[], None]
) -> Iterator[tuple[str, Run]]:
    if p.kind == "fp8":

        def product(c: int, fast: bool) -> None:
            w = p.weights[c]
            i.y.copy_(
                torch._scaled_mm(
                    q, w.values.T, scale, w.scale[None], out_dtype=torch.bfloat16,
                    use_fast_accum=fast,
                )
            )  # fmt: skip

        def alone(c: int) -> None:
            w = p.weights[c]
            torch._scaled_mm(
                q, w.values.T, scale, w.scale[None], out_dtype=torch.bfloat16, use_fast_accum=True
            )

        def both(c: int) -> None:
            prepare()
            product(c, False)

        yield "scaled_mm alone, fast", lambda c: product(c, True)
        yield "scaled_mm, no copy (unchecked)", alone
        yield "quant+scaled_mm", both
        yield "quant alone (unchecked)", lambda c: prepare()
    elif p.kind == "fp8-block":
        columns_first = scale.T.contiguous().T

        def blockwise(c: int) -> None:
            w = p.weights[c]
            i.y.copy_(
                torch._scaled_mm(q, w.values.T, columns_first, w.scale.T, out_dtype=torch.bfloat16)
            )

        yield "scaled_mm blockwise", blockwise
    elif p.rows > 16:

        def integer(c: int) -> None:
            w = p.weights[c]
            i.y.copy_(torch._int_mm(q, w.values.T).float() * scale * w.scale[None])

        yield "int_mm", integer


def _nibbles(p: Problem, i: Inputs, shared: Shared) -> Iterator[tuple[str, Run]]:
    plane = p.weights[0].plane
    own = tuning.nibbles_few(p.rows, p.columns, p.width, plane, True)
    if p.rows <= 512:
        cuts = [own, *_starts(own, (4, 8, 16))]
        if p.rows <= 16:
            kinds = [(64, 4, 4, 64), (64, 4, 3, 64), (128, 8, 3, 64), (128, 8, 4, 64)]
        else:
            kinds = [(128, 8, 2, 64), (64, 4, 3, 64), (64, 4, 2, 64), (128, 8, 3, 32)]
            kinds += [(64, 4, 3, 32)]
        for rows, warps, stages, most in kinds:
            stages += 4 if plane < 128 else 0
            for split in (1, 2, 4, 8):
                tile = Tile(rows, 4 * plane, split, warps, stages, most, wide=own.wide)
                if (split == 1 or p.width >= tile.block * split) and _sensible(p, tile):
                    cuts.append(replace(tile, pdl=True, ahead=4))
        for tile in dict.fromkeys(cuts):
            yield _name("tile", tile), _nibbles_tile(p, i, tile, shared)
    if p.rows >= 64:
        for megabytes in (32, 16, 1 << 10):
            yield f"dequantize {megabytes} MiB+mm", _dequantized(p, i, megabytes << 20)
        held = torch.empty(p.columns, p.width, device=p.device, dtype=torch.bfloat16)
        yield (
            "dequantize alone (unchecked)", lambda c: launch.dequantize_rows(p.weights[c], 0, held)
        )  # fmt: skip


def _name(kind: str, cut: Line | Row | Tile) -> str:
    if not isinstance(cut, Tile):
        size = cut.programs if isinstance(cut, Line) else cut.block
        return f"{kind} {cut.rows}x{size} w{cut.warps}{' pdl' if cut.pdl else ''}"
    split = f" /{cut.split}" if cut.split > 1 else ""
    early = f" pdl+{cut.ahead}" if cut.pdl else ""
    return f"{kind} {cut.rows}x{cut.most}x{cut.block}{split} w{cut.warps} s{cut.stages}{early}"


def _row(call: Callable[..., None], p: Problem, i: Inputs, cut: Line | Row) -> Run:
    return lambda c: call(i.x, p.weights[c], None, i.y, cut)


def _dense_tile(p: Problem, i: Inputs, cut: Tile, shared: Shared) -> Run:
    scratch = shared.scratch(cut, p.rows, p.columns)
    return lambda c: launch.dense_tiles(i.x, p.weights[c], None, i.y, cut, scratch)


def _bytes_tile(
    p: Problem, i: Inputs, cut: Tile, shared: Shared, given: tuple[torch.Tensor, torch.Tensor],
    prepare: Callable[[bool], None],
) -> Run:  # fmt: skip
    scratch = shared.scratch(cut, p.rows, p.columns)

    def run(c: int) -> None:
        prepare(cut.pdl)
        launch.w8_tiles(*given, p.weights[c], None, i.y, cut, scratch)

    return run


def _nibbles_tile(p: Problem, i: Inputs, cut: Tile, shared: Shared) -> Run:
    scratch = shared.scratch(cut, p.rows, p.columns)
    return lambda c: launch.int4_tiles(i.x, p.weights[c], None, i.y, cut, scratch)


def _dequantized(p: Problem, i: Inputs, nbytes: int) -> Run:
    part = min(p.columns, nbytes // (2 * p.width) // 64 * 64)
    held = torch.empty(part, p.width, device=p.device, dtype=torch.bfloat16)

    def run(c: int) -> None:
        for first in range(0, p.columns, part):
            last = min(first + part, p.columns)
            launch.dequantize_rows(p.weights[c], first, held[: last - first])
            torch.mm(i.x, held[: last - first].T, out=i.y[:, first:last])

    return run
