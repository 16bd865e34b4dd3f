"""The draw of rows with more candidates than a list holds: flat logits under top_p, a top_k beyond
what the peaks tell, many equals. One launch for all such rows, none of which is common.

As many programs as the device has processors, which all run at the same time. They are cut into one
team for each such row (rows take turns where there are more), and a team's members each read their
share of the row, meet, and go on with what all of them found. Sums are of integers, so neither the
size of a team nor its order tells in a result.

Tokens are ordered by pairs, i64: the bits of the value as a rising integer, then the ids downwards.
No two are equal, and a cut is a pair. It lies in a bracket, all tokens at first, that each reading
divides by the weight and the number of tokens above each of WAYS - 1 pairs between its ends, until
ENOUGH or fewer are left to list. Three readings suffice for smooth logits; equals take up to 14.
The rest is as for other rows: the exact cut from the list, then the draw from the row.

Limits, V = 151,936, H100: a reading has some 130 integer operations a token, that is 0.7 us of
arithmetic a row with the whole device; with N rows 0.7 N us, and with few some 3 us to meet.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from inferplane_triton.kernels.sampling import (
    COUNTS,
    LOWEST,
    NO_ID,
    _address,
    _cut,
    _filters,
    _inside,
    _noise,
    _philox,
    _rising,
    _value_of,
    _weight,
)

ID_BITS = tl.constexpr(23)
LAST_ID = tl.constexpr(2**23 - 1)
LINEAR = tl.constexpr(2)
"""readings that divide the values evenly; later ones divide the bits, which always ends"""
MOST = tl.constexpr(24)
"""readings at most: 55 bits of a pair, three to four a reading; more only if a value is not a
number"""


@triton.jit
def _pair(key, token):
    return (key.to(tl.int64) << ID_BITS) | (LAST_ID - token)


@triton.jit
def _meet(sync_ptr, times):
    """Wait until all members have come here for the time `times` / members"""
    tl.debug_barrier()  # what the other threads of this program wrote comes before
    tl.atomic_add(sync_ptr, 1)
    while tl.atomic_add(sync_ptr, 0) < times:
        pass
    tl.debug_barrier()


@triton.jit
def _dividers(lo, hi, reading, WAYS: tl.constexpr):
    """WAYS rising pairs from `lo` on, not above `hi`"""
    way = tl.arange(0, WAYS)
    even = lo + way * ((hi - lo) // WAYS + 1)
    ceiling = _value_of((hi >> ID_BITS).to(tl.uint32))
    floor = _value_of((lo >> ID_BITS).to(tl.uint32))
    floor = tl.maximum(floor, ceiling - 64.0)  # e^-64 of the largest weighs nothing
    value = floor + (ceiling - floor) * (way.to(tl.float32) * (1.0 / WAYS))
    linear = _rising(value).to(tl.int64) << ID_BITS
    pairs = tl.where((reading < LINEAR) & (floor < ceiling), linear, even)
    return tl.where(way == 0, lo, tl.minimum(tl.maximum(pairs, lo), hi))


@triton.jit
def _at(values, index, WAYS: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, WAYS) == index, values, 0), 0)


@triton.jit
def _totals(part_ptr, first, team, WAYS: tl.constexpr, CORES_PAD: tl.constexpr):
    """The sum over a team of what its members left"""
    member = tl.arange(0, CORES_PAD)
    at = (first + member[:, None]) * (2 * WAYS) + tl.arange(0, WAYS)[None, :]
    return tl.sum(tl.load(part_ptr + at, mask=member[:, None] < team, other=0), 0)


@triton.jit
def _read(base, token, vocab, temperature, cut, last):
    """Values and pairs, and which of the tokens are inside (cut, last)"""
    x = tl.load(base + token, mask=token < vocab, other=LOWEST)
    x = tl.div_rn(x, temperature)
    key = _rising(x)
    inside = (token < vocab) & (x > LOWEST) & _inside(key, token, cut, last)
    return x, _pair(key, token), inside


@triton.jit
def _above(
    base, vocab, temperature, top, cut, last, dividers, member, team, part_ptr,
    MASS: tl.constexpr, WAYS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """A member's share of the weight and of the number of tokens at or above each divider"""
    weights = tl.zeros([WAYS, LANES], tl.int64)
    numbers = tl.zeros([WAYS, LANES], tl.int32)
    for start in range(member * LANES, vocab, team * (LANES * UNROLL)):
        for j in tl.static_range(UNROLL):
            token = start + j * team * LANES + tl.arange(0, LANES)
            x, pair, inside = _read(base, token, vocab, temperature, cut, last)
            pair = tl.where(inside, pair, -1)
            kept = pair[None, :] >= dividers[:, None]
            numbers += kept.to(tl.int32)
            if MASS:
                weights += tl.where(kept, _weight(x, top)[None, :], 0)
    number = tl.sum(numbers, 1).to(tl.int64)
    at = tl.arange(0, WAYS)
    weight = number
    if MASS:
        weight = tl.sum(weights, 1)
    tl.store(part_ptr + at, weight)
    tl.store(part_ptr + WAYS + at, number)


@triton.jit
def _list(
    base, vocab, temperature, top, cut, last, lo, hi, member, team, count_ptr, value_ptr, id_ptr,
    CAP: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Append the tokens of a bracket; returns a member's share of the mass above it"""
    beyond = tl.zeros([LANES], tl.int64)
    for start in range(member * LANES, vocab, team * (LANES * UNROLL)):
        for j in tl.static_range(UNROLL):
            token = start + j * team * LANES + tl.arange(0, LANES)
            x, pair, inside = _read(base, token, vocab, temperature, cut, last)
            beyond += tl.where(inside & (pair > hi), _weight(x, top), 0)
            listed = inside & (pair >= lo) & (pair <= hi)
            place = tl.atomic_add(count_ptr + token * 0, 1, mask=listed, sem="relaxed")
            room = listed & (place < CAP)
            tl.store(value_ptr + place, x, mask=room)
            tl.store(id_ptr + place, token, mask=room)
    return tl.sum(beyond, 0)


@triton.jit
def _wide_cut(
    base, vocab, temperature, top, cut, last, target, turn, member, team, first, sync_ptr,
    part_ptr, count_ptr, value_ptr, id_ptr,
    MASS: tl.constexpr, WAYS: tl.constexpr, CAP: tl.constexpr, ENOUGH: tl.constexpr,
    BITS: tl.constexpr, BLOCK: tl.constexpr, CORES_PAD: tl.constexpr, HALF: tl.constexpr,
    LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """As `_cut`, by a team. Returns also how often it has met, `turn`; what its members leave for
    each other lies in two places by turns, so that none is written while it is read."""
    lo = target * 0
    hi = (_rising(top).to(tl.int64) << ID_BITS) | LAST_ID
    beyond = target * 0  # weight above the bracket
    number = target * 0 + (ENOUGH + 1)
    higher = target * 0
    reading = turn * 0
    while (number > ENOUGH) & (reading < MOST):
        dividers = _dividers(lo, hi, reading, WAYS)
        half = part_ptr + (turn % 2) * HALF
        _above(
            base, vocab, temperature, top, cut, last, dividers, member, team,
            half + (first + member) * (2 * WAYS), MASS, WAYS, LANES, UNROLL,
        )  # fmt: skip
        turn += 1
        _meet(sync_ptr, turn * team)
        weights = _totals(half, first, team, WAYS, CORES_PAD)
        numbers = _totals(half + WAYS, first, team, WAYS, CORES_PAD)
        index = tl.maximum(tl.sum((weights >= target).to(tl.int32), 0) - 1, 0)
        lo = _at(dividers, index, WAYS)
        if index < WAYS - 1:
            hi = _at(dividers, index + 1, WAYS) - 1
            beyond = _at(weights, index + 1, WAYS)
            higher = _at(numbers, index + 1, WAYS)
        number = _at(numbers, index, WAYS) - higher
        reading += 1
    half = part_ptr + (turn % 2) * HALF
    mass = _list(
        base, vocab, temperature, top, cut, last, lo, hi, member, team, count_ptr, value_ptr,
        id_ptr, CAP, LANES, UNROLL,
    )  # fmt: skip
    tl.store(half + (first + member) * (2 * WAYS), mass)
    turn += 1
    _meet(sync_ptr, turn * team)
    above = _at(_totals(half, first, team, WAYS, CORES_PAD), 0, WAYS)
    listed = tl.minimum(number, CAP).to(tl.int32)
    cut, last, exact = _cut(
        listed, value_ptr, id_ptr, top, cut, last, target - beyond, vocab, MASS, BITS, BLOCK,
    )  # fmt: skip
    return cut, last, exact + above, turn


@triton.jit
def _both_cuts(
    base, vocab, temperature, top, mass, counts, shares, top_k, top_p, turn, member, team, first,
    sync_ptr, part_ptr, count_ptr, value_ptr, id_ptr,
    WAYS: tl.constexpr, CAP: tl.constexpr, ENOUGH: tl.constexpr, BITS: tl.constexpr,
    CORES_PAD: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The cut of top_k, then inside it that of top_p, where they restrict the row; and `turn`"""
    cut = (turn * 0).to(tl.uint32)
    last = turn * 0 + NO_ID
    exact = (turn * 0).to(tl.int64)
    if counts:
        cut, last, exact, turn = _wide_cut(
            base, vocab, temperature, top, cut, last, top_k.to(tl.int64), turn, member, team,
            first, sync_ptr, part_ptr, count_ptr + 1, value_ptr, id_ptr,
            False, WAYS, CAP, ENOUGH, BITS, LANES, CORES_PAD, HALF, LANES, UNROLL,
        )  # fmt: skip
        mass = exact.to(tl.float64)
    if shares:
        target = tl.maximum(tl.ceil(top_p.to(tl.float64) * mass).to(tl.int64), 1)
        cut, last, exact, turn = _wide_cut(
            base, vocab, temperature, top, cut, last, target, turn, member, team,
            first, sync_ptr, part_ptr, count_ptr + 2, value_ptr, id_ptr,
            True, WAYS, CAP, ENOUGH, BITS, LANES, CORES_PAD, HALF, LANES, UNROLL,
        )  # fmt: skip
    return cut, last, turn


@triton.jit
def _wide_best(
    base, vocab, temperature, top, cut, last, min_p, position, sample, low, high, member, team,
    LANES: tl.constexpr,
):  # fmt: skip
    """A member's best score inside (cut, last) as the bits of its value, then the token as in
    pairs: the lower token of equal scores"""
    best = tl.zeros([LANES], tl.int64)
    for start in range(member * LANES, (vocab + 3) // 4, team * LANES):
        block = start + tl.arange(0, LANES)
        words = _philox(block.to(tl.uint32), position, sample, low, high)
        for j in tl.static_range(4):
            token = block * 4 + j
            x, _, inside = _read(base, token, vocab, temperature, cut, last)
            score = _pair(_rising(x + _noise(words[j])), token)
            best = tl.maximum(best, tl.where(inside & (tl.exp(x - top) >= min_p), score, 0))
    return tl.max(best, 0)


@triton.jit
def wide(
    out_ptr, logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, sample_ptr,
    position_ptr, stat_ptr, count_ptr, value_ptr, id_ptr, mark_ptr, part_ptr,
    vocab, stride_logits, stride_row, stride_seed,
    CORES: tl.constexpr, CORES_PAD: tl.constexpr, CAP: tl.constexpr, ENOUGH: tl.constexpr,
    WAYS: tl.constexpr, BITS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Programs (CORES), which must run at the same time: the tokens i32[N] of the rows that
    `visit` named in mark i32[1 + CORES + N]: their number, how often each team has met (0 before),
    the rows. part i64[2, CORES, 2 * WAYS]: what members leave for each other."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    found = tl.load(mark_ptr)
    if found > 0:
        team = tl.maximum(CORES // found, 1)
        mine = tl.program_id(0) // team
        member = tl.program_id(0) % team
        first = mine * team
        sync = mark_ptr + 1 + mine
        teams = CORES // team
        turn = found * 0
        for i in range(mine, tl.where(mine < teams, found, 0), teams):
            row = tl.load(mark_ptr + 1 + CORES + i).to(tl.int64)
            at = row * stride_row
            temperature, counts, shares, _floors, _needed = _filters(
                temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, at, vocab
            )
            top = tl.load(stat_ptr + row * 4 + 1)
            mass = tl.load(stat_ptr + row * 4 + 2).to(tl.float64) * (2.0**40)
            base = logits_ptr + row * stride_logits
            cut, last, turn = _both_cuts(
                base, vocab, temperature, top, mass, counts, shares, tl.load(top_k_ptr + at),
                tl.load(top_p_ptr + at), turn, member, team, first, sync, part_ptr,
                count_ptr + row * COUNTS, value_ptr + row * CAP, id_ptr + row * CAP,
                WAYS, CAP, ENOUGH, BITS, CORES_PAD, CORES * 2 * WAYS, LANES, UNROLL,
            )  # fmt: skip
            low, high, sample, position = _address(
                seed_ptr, sample_ptr, position_ptr, row, stride_seed, stride_row
            )
            best = _wide_best(
                base, vocab, temperature, top, cut, last, tl.load(min_p_ptr + at), position,
                sample, low, high, member, team, LANES,
            )  # fmt: skip
            half = part_ptr + (turn % 2) * (CORES * 2 * WAYS)
            tl.store(half + (first + member) * (2 * WAYS), best)
            turn += 1
            _meet(sync, turn * team)
            if member == 0:
                each = tl.arange(0, CORES_PAD)
                bests = tl.load(half + (first + each) * (2 * WAYS), mask=each < team, other=0)
                token = LAST_ID - (tl.max(bests, 0) & LAST_ID).to(tl.int32)
                tl.store(out_ptr + row, tl.minimum(token, vocab - 1))
