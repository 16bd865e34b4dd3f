"""Which tile serves a product, by its shape. Measured on one H100 with ci/bench/gpu/linears.py;
what has not been measured there says so."""

from inferplane_triton.launch import Row, Tile

FEW = 64
"""rows of x up to which W's bytes are the limit"""
PROGRAMS = 264
"""two for each multiprocessor of an H100: enough loads in flight to read at full speed"""


def divisor(width: int, most: int) -> int:
    """The largest power of two up to `most` that divides width."""
    return min(most, width & -width)


def dense_row(columns: int, width: int) -> Row:
    block = divisor(width, 1024)
    return Row(rows=1 if columns * width < 1 << 23 else 4, block=block)


def bytes_row(columns: int, width: int) -> Row:
    block = divisor(width, 2048)
    return Row(rows=4, block=block, warps=max(1, block // 512))


def nibbles_row(columns: int, width: int) -> Row:
    """A warp's loads are 128 words; warps stand along K, so that scales need no exchange."""
    block = divisor(width // 8, 512)
    return Row(rows=4, block=block, warps=max(1, block // 128))


def split_for(columns: int, width: int, rows: int, block: int, most: int = 8) -> int:
    """Parts of K that give enough programs, each with at least two steps."""
    split = 1
    while split < most and columns // rows * split < PROGRAMS and width >= 4 * block * split:
        split *= 2
    return split


def dense_few(columns: int, width: int) -> Tile:
    return Tile(64, 128, split_for(columns, width, 64, 128), warps=4, stages=5)


def bytes_few(columns: int, width: int, blocked: bool) -> Tile:
    block = 128 if blocked else divisor(width, 256)
    return Tile(64, block, split_for(columns, width, 64, block), warps=4, stages=4)


def bytes_many(columns: int) -> Tile:
    rows = 128 if columns % 128 == 0 else 64
    return Tile(rows, 128, warps=8, stages=3, most=128, wide=8)


def nibbles_few(columns: int, width: int) -> Tile:
    chunks = divisor(width // 128, 4)
    split = split_for(columns, width, 32, 128 * chunks)
    return Tile(32, 128 * chunks, split, warps=chunks, stages=4, most=32)


def invariant(rows: int, columns: int, width: int) -> Tile:
    """`split` depends on W's shape alone and the unit is wgmma throughout: see kernels/tiles.py.
    `rows` only chooses what does not change the order of an element's sum."""
    split = split_for(columns, width, 64, 128, most=4)
    if rows <= FEW:
        return Tile(64, 128, split, warps=4, stages=5)
    tall = 128 if columns % 128 == 0 else 64
    return Tile(tall, 64, split, warps=tall // 16, stages=4, most=128, wide=8, serial=True)
