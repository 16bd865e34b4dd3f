"""From logits to tokens without sorting the vocabulary. Letters: N rows, V tokens, S segments of a
row, G groups of a segment, C candidates.

                launches   bytes read           limit at 3 TB/s, V = 151,936, N = 256
restrict        1          4 N V and what it    104 us (read and write) plus its inputs
                           is given
greedy          2          4 N V                 52 us
unfiltered      2          4 N V                 52 us; the noise is 20 integer and 60 float
                                                 operations a token, about 80 us of arithmetic
filtered        4          4 N V to 8 N V        52 to 104 us
logprobs        2 or 4     4 N V to 8 N V        52 to 104 us

A row is cut into segments by V alone, so no row depends on how many others there are; sums are
taken in a fixed order or as integers, and nothing else rounds: the same row has the same bits in
every batch.

Filtered rows keep a prefix of the falling order (ties: the lower id first), that is, a cut: a value
and the last id that is kept among its equals. `peaks` reads the row once for the largest logit of
each group and the sums of e^x. `bound` finds from them a value that the cut cannot be below:
  top_k  the k-th largest peak
  top_p  the value down to which the peaks alone have the mass p Z; or the one below which all
         tokens together have less than (1 - p) Z
  min_p  the peak plus ln(min_p)
`visit` collects the tokens above the bound, reading only segments that reach it, and `finish` finds
the exact cut among them: radix selection of four bits at a time on the bits of the floats as
ordered integers, with counts or with probabilities in units of 2^-40 as weights. With more than
`CAP` candidates (flat logits, many equals) `finish` reads the row itself: correct, but by one
program a row, some 100 us.

The noise is Philox4x32-10 (Salmon et al., SC 2011) with Gumbel-max as docs/noise.md defines it.
The words and uniforms are exact. The two logarithms are the device library's, right to 1 to 2 units
in the last place, so a token can differ from another implementation's only where two scores are
closer than that (a few times 2^-23 of the larger).
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(float("-inf"))
UNIT = tl.constexpr(2.0**40)
"""of a probability relative to the largest one; at most 2^23 tokens add up in 64 bits"""
NO_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _rising(x):
    """The bits of a float as an unsigned integer that rises with it; -0.0 as 0.0"""
    bits = (x + 0.0).to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _value_of(key):
    """The float of such an integer, -inf for those below -inf"""
    bits = tl.where(key >> 31 == 1, key & 0x7FFFFFFF, key ^ 0xFFFFFFFF)
    return tl.where(key < 0x007FFFFF, LOWEST, bits.to(tl.float32, bitcast=True))


@triton.jit
def _philox(c0, c1, c2, k0, k1):
    """Four words for the counter (c0, c1, c2, 0) and the key (k0, k1)"""
    c3 = c0 * 0
    c1 += c3
    c2 += c3
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = c0 * 0xD2511F53
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low1
        c3 = low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _noise(word):
    uniform = ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
    return -tl.log(-tl.log(uniform))


@triton.jit
def _address(seed_ptr, sample_ptr, position_ptr, row, stride_seed, stride):
    """(seed low, seed high, sample index, position) of a row, as unsigned words"""
    low = tl.load(seed_ptr + row * stride_seed).to(tl.uint32, bitcast=True)
    high = tl.load(seed_ptr + row * stride_seed + 1).to(tl.uint32, bitcast=True)
    sample = tl.load(sample_ptr + row * stride).to(tl.uint32, bitcast=True)
    position = tl.load(position_ptr + row).to(tl.uint32, bitcast=True)
    return low, high, sample, position


@triton.jit
def _best(score, token):
    """The largest score and the lowest token that has it"""
    best = tl.max(score, 0)
    return best, tl.min(tl.where(score == best, token, NO_ID), 0)


@triton.jit
def _filters(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, at, vocab):
    """The temperature of a row, whether top_k, top_p and min_p restrict it, and whether any does"""
    temperature = tl.load(temperature_ptr + at)
    k = tl.load(top_k_ptr + at)
    counts = (k > 0) & (k < vocab)
    shares = tl.load(top_p_ptr + at) < 1.0
    floors = tl.load(min_p_ptr + at) > 0.0
    return temperature, counts, shares, floors, (temperature > 0.0) & (counts | shares | floors)


# ---- filter ----


@triton.jit
def restrict(
    logits_ptr, out_ptr, counts_ptr, in_prompt_ptr, repetition_ptr, frequency_ptr, presence_ptr,
    bias_ptr, banned_ptr, bitmask_ptr, vocab, words, stride_logits, stride_row, banned,
    BANNED_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Penalties, bias, banned tokens and bitmask [N, V] -> [N, V]; programs (tiles, rows).

    The bits of the reference: divisions round to nearest and nothing is fused (compile with
    enable_fp_fusion=False). stride_row: of the penalties' values.
    """
    start = tl.program_id(0) * BLOCK
    row = tl.program_id(1).to(tl.int64)
    token = start + tl.arange(0, BLOCK)
    inside = token < vocab
    x = tl.load(logits_ptr + row * stride_logits + token, mask=inside, other=0.0)
    if counts_ptr is not None:
        repetition = tl.load(repetition_ptr + row * stride_row)
        frequency = tl.load(frequency_ptr + row * stride_row)
        presence = tl.load(presence_ptr + row * stride_row)
        count = tl.load(counts_ptr + row * vocab + token, mask=inside, other=0)
        prompt = tl.load(in_prompt_ptr + row * vocab + token, mask=inside, other=0)
        factor = tl.where((count > 0) | (prompt != 0), repetition, 1.0)
        x = tl.where(x > 0, tl.div_rn(x, factor), x * factor)
        x = x - frequency * count.to(tl.float32)
        x = x - presence * (count > 0).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + row * vocab + token, mask=inside, other=0.0)
    if bitmask_ptr is not None:
        word = tl.load(bitmask_ptr + row * words + token // 32, mask=inside, other=0)
        x = tl.where((word >> (token % 32)) & 1 != 0, x, LOWEST)
    tl.store(out_ptr + row * vocab + token, x, mask=inside)
    if banned_ptr is not None:
        tl.debug_barrier()  # other threads of this program store the same places
        at = tl.arange(0, BANNED_PAD)
        gone = tl.load(banned_ptr + row * banned + at, mask=at < banned, other=-1)
        mine = (gone >= start) & (gone < start + BLOCK) & (gone < vocab)
        tl.store(out_ptr + row * vocab + gone, gone * 0.0 + LOWEST, mask=mine)


# ---- the draw, and what logprobs share with it ----


@triton.jit
def peaks(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, own_ptr, peak_ptr, sum_ptr,
    above_ptr, vocab, stride_logits, stride_row,
    SEGMENT: tl.constexpr, GROUP: tl.constexpr, LOGPROBS: tl.constexpr,
):  # fmt: skip
    """Programs (S, N): the largest logit of each group f32[N, S * G] (scaled by the temperature),
    and of each segment the sum of e^(x - its largest) f32[N, S]. LOGPROBS: not scaled, and how many
    logits are above that of token own[N], i32[N, S]. Rows without a filter are left out."""
    segment = tl.program_id(0)
    segments = tl.num_programs(0)
    row = tl.program_id(1).to(tl.int64)
    GROUPS: tl.constexpr = SEGMENT // GROUP
    temperature = 1.0
    needed = True
    if not LOGPROBS:
        temperature, _, _, _, needed = _filters(
            temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row * stride_row, vocab
        )
    if needed:
        token = segment * SEGMENT + tl.arange(0, SEGMENT)
        base = logits_ptr + row * stride_logits
        x = tl.load(base + token, mask=token < vocab, other=LOWEST)
        if LOGPROBS:
            own = tl.load(base + tl.load(own_ptr + row))
            above = tl.sum((x > own).to(tl.int32), 0)
            tl.store(above_ptr + row * segments + segment, above)
        else:
            x = tl.div_rn(x, temperature)
        group = tl.max(tl.reshape(x, [GROUPS, GROUP]), 1)
        at = segment * GROUPS + tl.arange(0, GROUPS)
        tl.store(peak_ptr + row * segments * GROUPS + at, group)
        top = tl.max(x, 0)
        part = tl.where(x > LOWEST, tl.exp(x - top), 0.0)
        tl.store(sum_ptr + row * segments + segment, tl.sum(part, 0))


@triton.jit
def _reach(key, weight, target, BITS: tl.constexpr, DIGITS: tl.constexpr):
    """The largest key, of which only the first DIGITS digits are looked for, with which those that
    are not below it have at least the weight `target`; 0 if all have less"""
    digit = tl.arange(0, 1 << BITS)
    prefix = tl.sum(digit * 0, 0).to(tl.uint32)
    for i in range(DIGITS):
        shift = 32 - BITS * (i + 1)
        least = prefix + (digit.to(tl.uint32) << shift)
        kept = tl.where(key[None, :] >= least[:, None], weight[None, :], 0)
        enough = (tl.sum(kept, 1) >= target).to(tl.int32)
        prefix += tl.maximum(tl.sum(enough, 0) - 1, 0).to(tl.uint32) << shift
    return prefix


@triton.jit
def _row_mass(
    peak_ptr, sum_ptr, row, segments, GROUPS: tl.constexpr, SEGMENTS_PAD: tl.constexpr
):  # fmt: skip
    """The largest value of a row, and Z relative to e^largest from the segments' sums"""
    segment = tl.arange(0, SEGMENTS_PAD)
    inside = segment < segments
    at = (row * segments + segment[:, None]) * GROUPS + tl.arange(0, GROUPS)[None, :]
    peak = tl.max(tl.load(peak_ptr + at, mask=inside[:, None], other=LOWEST), 1)
    sums = tl.load(sum_ptr + row * segments + segment, mask=inside, other=0.0)
    top = tl.max(peak, 0)
    return top, tl.sum(tl.where(peak > LOWEST, sums * tl.exp(peak - top), 0.0), 0)


@triton.jit
def _least_count(peak, k):
    """A value that at least k peaks reach, close to the k-th of them; -inf with fewer peaks"""
    ones = (peak > LOWEST).to(tl.int32)
    least = _value_of(_reach(_rising(peak), ones, k, 2, 10))
    return tl.where(tl.sum(ones, 0) >= k, least, LOWEST)


@triton.jit
def _least_mass(peak, top, target):
    """A value that peaks with the mass `target` together reach; -inf if all have less"""
    weight = tl.where(peak > LOWEST, tl.exp(peak - top), 0.0)
    target = tl.maximum(target, 1e-30)  # p may be 0
    least = LOWEST + top * 0.0
    if tl.sum(weight, 0) >= target * 1.0001:
        least = _value_of(_reach(_rising(peak), weight, target, 2, 10))
    return least


@triton.jit
def bound(
    peak_ptr, sum_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, stat_ptr, count_ptr,
    vocab, segments, stride_row, TOP: tl.constexpr, LOGPROBS: tl.constexpr,
    GROUPS: tl.constexpr, PADDED: tl.constexpr, SEGMENTS_PAD: tl.constexpr,
):  # fmt: skip
    """Programs (N): (bound, largest, Z / e^largest) f32[N, 4] and candidate counts of 0.

    The bound keeps all that the exact search needs; -inf if the peaks do not tell.
    """
    row = tl.program_id(0).to(tl.int64)
    needed = True
    if not LOGPROBS:
        _, counts, shares, floors, needed = _filters(
            temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row * stride_row, vocab
        )
    if needed:
        at = tl.arange(0, PADDED)
        groups = segments * GROUPS
        peak = tl.load(peak_ptr + row * groups + at, mask=at < groups, other=LOWEST)
        top, mass = _row_mass(peak_ptr, sum_ptr, row, segments, GROUPS, SEGMENTS_PAD)
        if LOGPROBS:
            least = _least_count(peak, TOP)
        else:
            least = top * 0.0 + LOWEST
            if counts:
                least = _least_count(peak, tl.load(top_k_ptr + row * stride_row))
            else:
                slack = 1e-4 + 1e-6 * tl.abs(top)
                if floors:
                    least = top + tl.log(tl.load(min_p_ptr + row * stride_row)) - slack
                if shares:
                    p = tl.load(top_p_ptr + row * stride_row)
                    tail = 0.999 * (1.0 - p) * mass / vocab
                    if tail > 0.0:
                        least = tl.maximum(least, top + tl.log(tail) - slack)
                    least = tl.maximum(least, _least_mass(peak, top, p * mass * 1.0001))
        tl.store(stat_ptr + row * 4, least)
        tl.store(stat_ptr + row * 4 + 1, top)
        tl.store(stat_ptr + row * 4 + 2, mass)
        tl.store(count_ptr + row, 0)


@triton.jit
def _collect(
    logits_ptr, peak_ptr, stat_ptr, count_ptr, value_ptr, id_ptr, vocab, stride_logits,
    temperature, segment, segments, row, SEGMENT: tl.constexpr, GROUPS: tl.constexpr,
    CAP: tl.constexpr, LOGPROBS: tl.constexpr,
):  # fmt: skip
    """Append the segment's tokens that reach the bound, those at -inf never. Their order in the
    list depends on timing; nothing that is computed from the list does."""
    least = tl.load(stat_ptr + row * 4)
    at = (row * segments + segment) * GROUPS + tl.arange(0, GROUPS)
    if tl.max(tl.load(peak_ptr + at), 0) >= least:
        token = segment * SEGMENT + tl.arange(0, SEGMENT)
        x = tl.load(
            logits_ptr + row * stride_logits + token, mask=token < vocab, other=LOWEST
        )  # fmt: skip
        if not LOGPROBS:
            x = tl.div_rn(x, temperature)
        kept = ((x >= least) & (x > LOWEST)).to(tl.int32)
        count = tl.sum(kept, 0)
        if count > 0:
            place = tl.atomic_add(count_ptr + row, count) + tl.cumsum(kept, 0) - 1
            room = (kept != 0) & (place < CAP)
            tl.store(value_ptr + row * CAP + place, x, mask=room)
            tl.store(id_ptr + row * CAP + place, token, mask=room)


@triton.jit
def collect(
    logits_ptr, peak_ptr, stat_ptr, count_ptr, value_ptr, id_ptr, vocab, stride_logits,
    SEGMENT: tl.constexpr, GROUPS: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """Programs (S, N), for logprobs"""
    _collect(
        logits_ptr, peak_ptr, stat_ptr, count_ptr, value_ptr, id_ptr, vocab, stride_logits, 1.0,
        tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64),
        SEGMENT, GROUPS, CAP, True,
    )  # fmt: skip


@triton.jit
def _noisy_best(base, block, temperature, position, sample, low, high, vocab):
    """The best score of four tokens to each of the blocks i32[n], and its token"""
    words = _philox(block.to(tl.uint32), position, sample, low, high)
    chosen = block * 4
    best = chosen * 0.0 + LOWEST
    for j in tl.static_range(4):
        token = block * 4 + j
        x = tl.load(base + token, mask=token < vocab, other=LOWEST)
        score = tl.div_rn(x, temperature) + _noise(words[j])
        chosen = tl.where(score > best, token, chosen)
        best = tl.maximum(best, score)
    return _best(best, chosen)


@triton.jit
def visit(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, sample_ptr,
    position_ptr, score_ptr, token_ptr, peak_ptr, stat_ptr, count_ptr, value_ptr, id_ptr,
    vocab, stride_logits, stride_row, stride_seed,
    GREEDY: tl.constexpr, FILTERED: tl.constexpr, SEGMENT: tl.constexpr, GROUPS: tl.constexpr,
    CAP: tl.constexpr,
):  # fmt: skip
    """Programs (S, N): the best score of the segment f32[N, S] and its token i32[N, S]; of rows
    with a filter, the candidates instead."""
    segment = tl.program_id(0)
    segments = tl.num_programs(0)
    row = tl.program_id(1).to(tl.int64)
    temperature = 0.0
    narrow = False
    if FILTERED:
        temperature, _, _, _, narrow = _filters(
            temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row * stride_row, vocab
        )
    elif not GREEDY:
        temperature = tl.load(temperature_ptr + row * stride_row)
    base = logits_ptr + row * stride_logits
    if narrow:
        if FILTERED:
            _collect(
                logits_ptr, peak_ptr, stat_ptr, count_ptr, value_ptr, id_ptr, vocab,
                stride_logits, temperature, segment, segments, row,
                SEGMENT, GROUPS, CAP, False,
            )  # fmt: skip
    elif temperature > 0.0:
        low, high, sample, position = _address(
            seed_ptr, sample_ptr, position_ptr, row, stride_seed, stride_row
        )
        top, token = _noisy_best(
            base, segment * (SEGMENT // 4) + tl.arange(0, SEGMENT // 4), temperature, position,
            sample, low, high, vocab,
        )  # fmt: skip
        tl.store(score_ptr + row * segments + segment, top)
        tl.store(token_ptr + row * segments + segment, token)
    else:
        at = segment * SEGMENT + tl.arange(0, SEGMENT)
        top, token = _best(tl.load(base + at, mask=at < vocab, other=LOWEST), at)
        tl.store(score_ptr + row * segments + segment, top)
        tl.store(token_ptr + row * segments + segment, token)


@triton.jit
def _weight(x, top):
    """e^(x - top) in integer units, so that sums have no order"""
    return (tl.where(x > LOWEST, tl.exp(x - top), 0.0) * UNIT).to(tl.int64)


@triton.jit
def _load_block(
    start, count, small, value_ptr, id_ptr, logits_ptr, temperature, BLOCK: tl.constexpr,
):  # fmt: skip
    """Values (-inf beyond the end) and ids of a block of the list, or of the row itself"""
    at = start + tl.arange(0, BLOCK)
    inside = at < count
    listed = tl.load(value_ptr + at, mask=inside & small, other=LOWEST)
    row = tl.load(logits_ptr + at, mask=inside & (small == 0), other=LOWEST)
    token = tl.load(id_ptr + at, mask=inside & small, other=NO_ID)
    x = tl.where(small, listed, tl.div_rn(row, temperature))
    return x, tl.where(small, token, at), inside


@triton.jit
def _inside(key, token, cut, last):
    return (key > cut) | ((key == cut) & (token <= last))


@triton.jit
def _search(
    count, small, value_ptr, id_ptr, logits_ptr, temperature, top, cut, last, target,
    MASS: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest key with which those inside (cut, last) that are not below it have at least the
    weight `target` i64; 0 if all have less"""
    digit = tl.arange(0, 1 << BITS)
    prefix = tl.sum(digit * 0, 0).to(tl.uint32)
    for i in range(32 // BITS):
        shift = 32 - BITS * (i + 1)
        least = prefix + (digit.to(tl.uint32) << shift)
        total = digit.to(tl.int64) * 0
        for start in range(0, count, BLOCK):
            x, token, inside = _load_block(
                start, count, small, value_ptr, id_ptr, logits_ptr, temperature, BLOCK
            )
            key = _rising(x)
            inside = inside & _inside(key, token, cut, last)
            if MASS:
                weight = tl.where(inside, _weight(x, top), 0)
            else:
                weight = inside.to(tl.int32)
            kept = tl.where(key[None, :] >= least[:, None], weight[None, :], 0)
            total += tl.sum(kept, 1)
        enough = (total >= target).to(tl.int32)
        prefix += tl.maximum(tl.sum(enough, 0) - 1, 0).to(tl.uint32) << shift
    return prefix


@triton.jit
def _last_equal(
    count, small, value_ptr, id_ptr, logits_ptr, temperature, cut, last, key, wanted, vocab,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The lowest id up to which `wanted` of the values with this key inside (cut, last) lie"""
    bottom = wanted * 0
    end = bottom + vocab - 1
    while bottom < end:
        middle = (bottom + end) // 2
        found = wanted * 0
        for start in range(0, count, BLOCK):
            x, token, inside = _load_block(
                start, count, small, value_ptr, id_ptr, logits_ptr, temperature, BLOCK
            )
            rising = _rising(x)
            inside = inside & _inside(rising, token, cut, last) & (rising == key)
            found += tl.sum((inside & (token <= middle)).to(tl.int32), 0)
        if found >= wanted:
            end = middle
        else:
            bottom = middle + 1
    return end


@triton.jit
def _cut(
    count, small, value_ptr, id_ptr, logits_ptr, temperature, top, cut, last, target, vocab,
    MASS: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The cut inside (cut, last) after the first token, in falling order, with which the weights
    reach `target` i64, after the last one if they never do; and the mass that it keeps."""
    prefix = _search(
        count, small, value_ptr, id_ptr, logits_ptr, temperature, top, cut, last, target,
        MASS, BITS, BLOCK,
    )  # fmt: skip
    above = target * 0  # weight, mass and number of those above and equal
    above_mass = target * 0
    equal_mass = target * 0
    equals = (target * 0).to(tl.int32)
    for start in range(0, count, BLOCK):
        x, token, inside = _load_block(
            start, count, small, value_ptr, id_ptr, logits_ptr, temperature, BLOCK
        )
        key = _rising(x)
        inside = inside & _inside(key, token, cut, last)
        weight = tl.where(inside, _weight(x, top), 0)
        above_mass += tl.sum(tl.where(key > prefix, weight, 0), 0)
        equal_mass = tl.maximum(equal_mass, tl.max(tl.where(key == prefix, weight, 0), 0))
        equals += tl.sum((inside & (key == prefix)).to(tl.int32), 0)
        if not MASS:
            above += tl.sum((inside & (key > prefix)).to(tl.int32), 0)
    unit = target * 0 + 1
    if MASS:
        above = above_mass
        unit = tl.maximum(equal_mass, 1)
    more = tl.minimum((target - above + unit - 1) // unit, equals.to(tl.int64)).to(tl.int32)
    end = more * 0 + vocab - 1
    if more < equals:
        end = _last_equal(
            count, small, value_ptr, id_ptr, logits_ptr, temperature, cut, last, prefix, more,
            vocab, BLOCK,
        )  # fmt: skip
    last = tl.where(prefix == cut, tl.minimum(last, end), end)
    return prefix, last, above_mass + equal_mass * more


@triton.jit
def _draw_inside(
    count, small, value_ptr, id_ptr, logits_ptr, temperature, top, cut, last, min_p, position,
    sample, low, high, BLOCK: tl.constexpr,
):  # fmt: skip
    """The token with the best score inside (cut, last) with at least min_p of the largest share"""
    best = top * 0.0 + LOWEST
    chosen = count * 0
    for start in range(0, count, BLOCK):
        x, token, inside = _load_block(
            start, count, small, value_ptr, id_ptr, logits_ptr, temperature, BLOCK
        )
        kept = inside & _inside(_rising(x), token, cut, last) & (tl.exp(x - top) >= min_p)
        four = _philox((token // 4).to(tl.uint32), position, sample, low, high)
        odd = token % 2 == 1
        word = tl.where(
            token % 4 < 2, tl.where(odd, four[1], four[0]), tl.where(odd, four[3], four[2])
        )
        score = tl.where(kept, x + _noise(word), LOWEST)
        block_best, block_token = _best(score, token)
        better = (block_best > best) | ((block_best == best) & (block_token < chosen))
        chosen = tl.where(better & (block_best > LOWEST), block_token, chosen)
        best = tl.maximum(best, block_best)
    return chosen


@triton.jit
def finish(
    score_ptr, token_ptr, out_ptr, logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr,
    seed_ptr, sample_ptr, position_ptr, stat_ptr, count_ptr, value_ptr, id_ptr,
    vocab, segments, stride_logits, stride_row, stride_seed,
    FILTERED: tl.constexpr, SEGMENTS_PAD: tl.constexpr, CAP: tl.constexpr, BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Programs (N): the tokens i32[N], from the best of each segment or from the candidates"""
    row = tl.program_id(0).to(tl.int64)
    narrow = False
    if FILTERED:
        temperature, counts, shares, _floors, narrow = _filters(
            temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row * stride_row, vocab
        )
    if narrow:
        if FILTERED:
            top = tl.load(stat_ptr + row * 4 + 1)
            mass = tl.load(stat_ptr + row * 4 + 2).to(tl.float64) * UNIT
            count = tl.load(count_ptr + row)
            small = count <= CAP
            count = tl.where(small, count, vocab)
            values = value_ptr + row * CAP
            ids = id_ptr + row * CAP
            base = logits_ptr + row * stride_logits
            cut = (count * 0).to(tl.uint32)
            last = count * 0 + NO_ID
            exact = (count * 0).to(tl.int64)
            if counts:
                cut, last, exact = _cut(
                    count, small, values, ids, base, temperature, top, cut, last,
                    tl.load(top_k_ptr + row * stride_row).to(tl.int64), vocab,
                    False, BITS, BLOCK,
                )  # fmt: skip
                mass = exact.to(tl.float64)
            if shares:
                p = tl.load(top_p_ptr + row * stride_row).to(tl.float64)
                cut, last, exact = _cut(
                    count, small, values, ids, base, temperature, top, cut, last,
                    tl.maximum(tl.ceil(p * mass).to(tl.int64), 1), vocab, True, BITS, BLOCK,
                )  # fmt: skip
            low, high, sample, position = _address(
                seed_ptr, sample_ptr, position_ptr, row, stride_seed, stride_row
            )
            chosen = _draw_inside(
                count, small, values, ids, base, temperature, top, cut, last,
                tl.load(min_p_ptr + row * stride_row), position, sample, low, high, BLOCK,
            )  # fmt: skip
            tl.store(out_ptr + row, tl.minimum(chosen, vocab - 1))
    else:
        segment = tl.arange(0, SEGMENTS_PAD)
        inside = segment < segments
        score = tl.load(score_ptr + row * segments + segment, mask=inside, other=LOWEST)
        token = tl.load(token_ptr + row * segments + segment, mask=inside, other=NO_ID)
        _, chosen = _best(score, token)
        tl.store(out_ptr + row, tl.minimum(chosen, vocab - 1))


@triton.jit
def logprobs(
    logits_ptr, own_ptr, peak_ptr, sum_ptr, above_ptr, count_ptr, value_ptr, id_ptr,
    logprob_ptr, rank_ptr, top_id_ptr, top_logprob_ptr, vocab, segments, stride_logits,
    TOP: tl.constexpr, GROUPS: tl.constexpr, SEGMENTS_PAD: tl.constexpr, CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Programs (N): logprob f32[N] and rank i32[N] of the token own[N], and the TOP most likely
    i32[N, TOP] with their logprobs, one after the other from the candidates"""
    row = tl.program_id(0).to(tl.int64)
    top, mass = _row_mass(peak_ptr, sum_ptr, row, segments, GROUPS, SEGMENTS_PAD)
    log_mass = tl.log(mass)
    segment = tl.arange(0, SEGMENTS_PAD)
    above = tl.load(above_ptr + row * segments + segment, mask=segment < segments, other=0)
    base = logits_ptr + row * stride_logits
    own = tl.load(base + tl.load(own_ptr + row))
    tl.store(logprob_ptr + row, (own - top) - log_mass)
    tl.store(rank_ptr + row, tl.sum(above, 0) + 1)
    if TOP > 0:
        count = tl.load(count_ptr + row)
        small = (count <= CAP) & (count >= TOP)  # tokens at -inf are not listed, but come last
        count = tl.where(small, count, vocab)
        before = (count * 0).to(tl.int64) + 0x7FFFFFFFFFFFFFFF
        for i in range(TOP):
            best = before * 0 - 0x7FFFFFFFFFFFFFFF
            for start in range(0, count, BLOCK):
                x, token, inside_block = _load_block(
                    start, count, small, value_ptr + row * CAP, id_ptr + row * CAP, base, 1.0,
                    BLOCK,
                )  # fmt: skip
                rising = _rising(x).to(tl.int64) - 0x80000000
                pair = (rising << 32) + (NO_ID - token)
                fits = inside_block & (pair < before)
                best = tl.maximum(best, tl.max(tl.where(fits, pair, -0x7FFFFFFFFFFFFFFF), 0))
            token = NO_ID - (best & 0xFFFFFFFF)
            value = _value_of(((best >> 32) + 0x80000000).to(tl.uint32))
            tl.store(top_id_ptr + row * TOP + i, token.to(tl.int32))
            tl.store(top_logprob_ptr + row * TOP + i, (value - top) - log_mass)
            before = best


# ---- embedding ----


@triton.jit
def embed(
    id_ptr, weight_ptr, out_ptr, width, stride_weight, SCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ids i32[T], weight [V, d] -> [T, d] * SCALE (rounded to the type); programs (T, columns)"""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < width
    source = tl.load(id_ptr + row).to(tl.int64)
    x = tl.load(weight_ptr + source * stride_weight + at, mask=mask, other=0.0)
    if SCALE != 1.0:
        x = (x.to(tl.float32) * SCALE).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * width + at, x, mask=mask)
