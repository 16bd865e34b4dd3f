"""Philox4x32-10 in plain Python with nothing wider than 32 bits: what docs/noise.md specifies,
written a second time. Every value and every intermediate result is checked to fit."""

WORD = 1 << 32


def fits(value: int) -> int:
    assert 0 <= value < WORD, f"{value} needs more than 32 bits"
    return value


def multiply(a: int, b: int) -> tuple[int, int]:
    """(high, low) words of the product of two words, from four products of 16 bit limbs."""
    a0, a1, b0, b1 = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    low, mid, mid2, high = (fits(x) for x in (a0 * b0, a1 * b0, a0 * b1, a1 * b1))
    carry = fits((low >> 16) + (mid & 0xFFFF) + (mid2 & 0xFFFF))
    bottom = fits((low & 0xFFFF) | ((carry & 0xFFFF) << 16))
    top = fits(high + (mid >> 16) + (mid2 >> 16) + (carry >> 16))
    return top, bottom


def add(a: int, b: int) -> int:
    """a + b modulo 2^32 by limbs."""
    low = fits((a & 0xFFFF) + (b & 0xFFFF))
    high = fits((a >> 16) + (b >> 16) + (low >> 16))
    return fits((low & 0xFFFF) | ((high & 0xFFFF) << 16))


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = multiply(0xD2511F53, c0)
        high1, low1 = multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = add(k0, 0x9E3779B9), add(k1, 0xBB67AE85)
    return c0, c1, c2, c3


def word(seed: int, sample_index: int, position: int, token: int) -> int:
    key = (seed & 0xFFFFFFFF, seed >> 32)
    return philox((token // 4, position, sample_index, 0), key)[token % 4]
