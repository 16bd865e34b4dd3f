"""Which tile serves a product, by its shape. Measured on one H100 with ci/bench/gpu/linears.py
where that is said; what is marked (estimated) has not been measured there.

Few different tiles: each is a compilation for every M_PAD, and a model's start waits for them.
"""

from dataclasses import replace

from inferplane_triton.attention import next_power
from inferplane_triton.launch import Line, Row, Tile

FEW = 64
"""rows of x up to which W's bytes are the limit"""
PROCESSORS = 132
"""multiprocessors of an H100; twice as many programs keep enough loads in flight"""
SHARE = 4
"""programs of a product with one row for each processor, at most"""
LONGEST = 1 << 14
"""values of x that the registers of a program hold beside its weights"""
SMALL = 1 << 23
"""elements of W whose read takes less than a tile's start and end"""


def divisor(width: int, most: int) -> int:
    """The largest power of two up to `most` that divides width."""
    return min(most, width & -width)


def dense_row(columns: int, width: int, cores: int, gated: bool, pdl: bool) -> Line | None:
    """Programs that all take as many tiles, of 8,192 weights if those come out even; where each has
    one tile, smaller ones, of which the next is fetched ahead, or fewer warps. Within 3 % of the
    best at the shapes of Llama-3-8B and Qwen3-0.6B (one H200). None if x is too long."""
    block = next_power(width) * (2 if gated else 1)
    if block > LONGEST:
        return None
    cuts = []
    for weights, warps in ((8192, 8), (4096, 4)):
        rows = max(1, weights // block)
        tiles = -(-columns // rows)
        programs = min(tiles, SHARE * cores)
        most = -(-tiles // programs) * -(-programs // cores) * rows  # that a processor computes
        cuts.append((most, Line(rows, programs, max(warps, block // 2048), pdl)))
    (most, large), (other, small) = cuts
    if large.programs * large.rows >= columns:
        return small if block >= 4096 else replace(large, warps=small.warps)
    return small if other < 0.9 * most else large


def dense_several(columns: int, width: int, cores: int, gated: bool, pdl: bool) -> Line | None:
    """For two rows of x and small W. Qwen3-0.6B, one H200: 21.7 us for the products of a layer,
    23.5 by tiles and the ops one by one; four rows take 25.1 so, and 26.2 by such a kernel."""
    if columns * width * (2 if gated else 1) > SMALL:
        return None
    return dense_row(columns, width, cores, gated, pdl)


def dense_few(columns: int, width: int, pdl: bool) -> Tile:
    """Up to 32 rows; 64 columns of 4096 inputs fare best without a split, 14336 with one."""
    tiles, steps = columns // 64, width // 128
    split = 4 if tiles <= 32 or tiles <= 64 < steps else 1
    return Tile(64, 128, _possible(split, steps), warps=4, stages=5, ahead=8, pdl=pdl)


def bytes_row(columns: int, width: int, quantized: bool, pdl: bool) -> Row | None:
    """None where quantizing the input in a kernel of its own and a tile are faster."""
    if quantized and columns * width > 1 << 25:
        return None
    block = divisor(width, 2048)
    return Row(rows=4, block=block, warps=max(1, block // 512), pdl=pdl)


def bytes_few(rows: int, columns: int, width: int, blocked: bool, pdl: bool) -> Tile:
    few = rows <= 32
    block = 128 if blocked or not few else divisor(width, 256)
    split = (4 if few else 2) if columns <= 64 * 64 else 1
    stages = 4 if block == 256 else 6
    split = _possible(split, width // block)
    return Tile(64, block, split, warps=4, stages=stages, ahead=8, pdl=pdl)


def bytes_many(columns: int, pdl: bool) -> Tile:
    rows = 128 if columns % 128 == 0 else 64
    return Tile(rows, 128, warps=8, stages=3, most=128, wide=8, pdl=pdl)


def nibbles_few(rows: int, columns: int, width: int, plane: int, pdl: bool) -> Tile:
    """Up to 16 rows of x: within 3 % of the best measured for one row. More (estimated):
    registers and shared memory leave room for one program on a multiprocessor; those are tall,
    because each tile of W reads x."""
    tall = rows > 16 and columns % 128 == 0
    height, warps, stages = (128, 8, 2) if tall else (64, 4, 3 if rows <= 16 else 2)
    programs = PROCESSORS if rows > 16 else 2 * PROCESSORS
    split, chunks = 1, width // (4 * plane)
    while split < 4 and columns // height * split * 2 <= programs and chunks >= 4 * split:
        split *= 2
    if plane < 128:
        stages += 4
    wide = 8 if rows > 16 else 1
    return Tile(height, 4 * plane, split, warps, stages, wide=wide, ahead=4, pdl=pdl)


def invariant(rows: int, columns: int, width: int, pdl: bool) -> Tile:
    """`split` depends on W's shape alone and the unit is wgmma throughout: see kernels/tiles.py.
    `rows` only chooses what does not change the order of an element's sum."""
    split = dense_few(columns, width, pdl).split
    if rows <= FEW:
        return Tile(64, 128, split, warps=4, stages=5, ahead=8, pdl=pdl)
    tall = 128 if columns % 128 == 0 else 64
    return Tile(tall, 64, split, warps=tall // 16, stages=4, most=128, wide=8, serial=True, pdl=pdl)


def _possible(split: int, steps: int) -> int:
    """Each part has at least two steps."""
    while split > 1 and steps < 2 * split:
        split //= 2
    return split
