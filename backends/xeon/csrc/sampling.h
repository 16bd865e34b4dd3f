// From logits to tokens without sorting the vocabulary: restrictions, the draw, and logprobs.
//
//   filter    penalties, bias, banned tokens and bitmask in one pass; 2 to 4 * N * V words moved
//   draw      Gumbel-max over what top_k, top_p and min_p keep; [N, V] -> [N]
//   logprobs  log-softmax of one token, its rank, and the most likely tokens
//
// A row is one item of work, done by one thread: its result depends on that row alone. All filters
// keep a prefix of the falling order (ties: the lower id first), so what they keep is a cut: a
// value and the last id that is kept among its equals. One pass takes the largest logit of each
// group of 4 W tokens; from these peaks
//   top_k  needs only groups that reach the k-th largest peak, a lower bound of the k-th logit,
//   top_p  only tokens whose e^x exceeds (1 - p) Z / V: all smaller ones together are too few,
//   noise  is computed only where a group's peak plus the largest noise reaches the best score.
// Among the candidates the cut is found by radix selection on the bits of the floats, 11 at a time,
// with counts or probabilities as weights, summed in float64.
//
// The noise is Philox4x32-10 (Salmon et al., SC 2011) as docs/noise.md defines it, one block in
// each lane. Sums are not rounded to float32 as the reference's are: only a probability that
// reaches top_p to the last bit can be cut elsewhere. A row of 49,152 logits takes 7 to 60 us;
// top_p of nearly flat logits 220.
#pragma once
#include "abi.h"
#include "elementwise.h"
#include "simd.h"

namespace ipx {
namespace IPX_ISA {

constexpr int64_t GROUP = 4 * W;
constexpr float LOWEST = -__builtin_inff();
constexpr float MOST_NOISE = 16.7f;  // -ln(-ln(1 - 2^-24)) is 16.64
constexpr int BIN_BITS = 11;

// ln(x) for normal x > 0, relative error 2^-22 also near 1: x = 2^e (1 + f), sqrt(1/2) <= 1 + f <
// sqrt(2), and f - f^2/2 + f^3 P(f) with P fitted at Chebyshev nodes
IPX_INLINE Vec log_vec(Vec x) {
  const Raw root_half = raw_set1(0x3f3504f3);
  Raw e = shift_signed<23>(raw_sub(as_raw(x), root_half));
  Vec f = sub(as_vec(raw_sub(as_raw(x), shift_left<23>(e))), set1(1.0f)), n = to_float(e);
  Vec p = set1(0.0714975372f);
  p = fma(p, f, set1(-0.115712009f));
  p = fma(p, f, set1(0.116615109f));
  p = fma(p, f, set1(-0.124110505f));
  p = fma(p, f, set1(0.142499372f));
  p = fma(p, f, set1(-0.166684806f));
  p = fma(p, f, set1(0.200007081f));
  p = fma(p, f, set1(-0.249999896f));
  p = fma(p, f, set1(0.333333313f));
  Vec square = mul(f, f);
  Vec rest = fma(mul(square, f), p, mul(n, set1(1.42860677e-6f)));  // ln 2 in two parts
  rest = fma(square, set1(-0.5f), rest);
  return fma(n, set1(0.693145752f), add(f, rest));
}

// ---- noise ----

struct Place {
  uint32_t key[2], position, sample;
};

// Gumbel noise of tokens start to start + GROUP; start is a multiple of 4
IPX_INLINE void gumbel(const Place& place, int64_t start, Vec (&noise)[4]) {
  alignas(64) uint32_t block[W];  // so that the transposed words lie in the order of the tokens
  for (int i = 0; i < W; i++) {
    block[i] = static_cast<uint32_t>(start / 4) + i % 4 * (W / 4) + i / 4;
  }
  Raw c[4] = {raw_load(block), raw_set1(place.position), raw_set1(place.sample), raw_zero()};
  uint32_t k0 = place.key[0], k1 = place.key[1];
  for (int round = 0; round < 10; round++) {
    Raw high0, low0, high1, low1;
    wide_product(c[0], raw_set1(0xD2511F53), high0, low0);
    wide_product(c[2], raw_set1(0xCD9E8D57), high1, low1);
    c[0] = raw_xor(raw_xor(high1, c[1]), raw_set1(k0));
    c[2] = raw_xor(raw_xor(high0, c[3]), raw_set1(k1));
    c[1] = low1, c[3] = low0;
    k0 += 0x9E3779B9, k1 += 0xBB67AE85;
  }
  transpose_quarters(c);
  for (int j = 0; j < 4; j++) {
    Vec uniform = mul(add(to_float(shift_right<9>(c[j])), set1(0.5f)), set1(0x1p-23f));
    noise[j] = sub(zero(), log_vec(sub(zero(), log_vec(uniform))));
  }
}

// ---- rows ----

struct Row {
  const float* logits;
  int64_t vocab, groups;
  float temperature, peak;
  float* peaks;  // the largest scaled logit of each group
  const uint32_t* bitmask = nullptr;  // of the tokens that exist; null: all
};

// What is kept: values above `value`, and those equal to it up to the id `last`
struct Cut {
  float value;
  int64_t last;
};

struct Candidates {  // in the order of their ids
  float* value;
  float* weight;
  int32_t* id;
  int64_t count;
};

// The bits of tokens start to start + GROUP, a multiple of 32
IPX_INLINE uint64_t bits_of(const Row& row, int64_t start) {
  if (!row.bitmask) return ~uint64_t{0};
  uint64_t bits = row.bitmask[start / 32];
  if (GROUP == 64 && start + 32 < row.vocab) {
    bits |= static_cast<uint64_t>(row.bitmask[start / 32 + 1]) << 32;
  }
  return bits;
}

// Scaled logits, -inf beyond the end and of tokens that do not exist
IPX_INLINE void load_group(const Row& row, int64_t start, Vec (&s)[4]) {
  uint64_t bits = bits_of(row, start);
  if (!bits) {  // most groups under a grammar: not even read
    for (int j = 0; j < 4; j++) s[j] = set1(LOWEST);
    return;
  }
  for (int j = 0; j < 4; j++) {
    const float* p = row.logits + start + j * W;
    int64_t left = row.vocab - start - j * W;
    s[j] = left >= W ? load(p)
           : left > 0 ? keep_range(load_n(p, left), 0, left, set1(LOWEST)) : set1(LOWEST);
    if (row.bitmask) s[j] = keep_lanes(s[j], bits >> j * W & ((1u << W) - 1), set1(LOWEST));
    if (row.temperature != 1.0f) s[j] = divide(s[j], set1(row.temperature));
  }
}

IPX_INLINE float largest_of(const Vec (&s)[4]) {
  return largest(maximum(maximum(s[0], s[1]), maximum(s[2], s[3])));
}

// The lowest lane of a group that reaches `value`
IPX_INLINE int64_t first_lane(const Vec (&s)[4], float value) {
  for (int j = 0; j < 4; j++) {
    uint32_t lanes = ~mask_less(s[j], set1(value)) & (0xffffffffu >> (32 - W));
    if (lanes) return j * W + __builtin_ctz(lanes);
  }
  return 0;
}

// False when memory is exhausted. Dividing by the temperature keeps the order of values, so the
// peaks are scaled after they were found.
static bool open_row(Row& row, const float* logits, int64_t vocab, float temperature) {
  row.logits = logits, row.vocab = vocab, row.groups = ceil_div(vocab, GROUP);
  row.temperature = 1.0f;
  row.peaks = static_cast<float*>(scratch(0, row.groups * 4));
  if (!row.peaks) return false;
  row.peak = LOWEST;
  for (int64_t g = 0; g < row.groups; g++) {
    Vec s[4];
    load_group(row, g * GROUP, s);
    row.peaks[g] = largest_of(s);
    if (row.peaks[g] > row.peak) row.peak = row.peaks[g];
  }
  if (temperature != 1.0f) {
    for (int64_t g = 0; g < row.groups; g++) row.peaks[g] /= temperature;
    row.peak /= temperature;
    row.temperature = temperature;
  }
  return true;
}

static int32_t argmax(const Row& row) {
  for (int64_t g = 0; g < row.groups; g++) {
    if (row.peaks[g] != row.peak) continue;
    Vec s[4];
    load_group(row, g * GROUP, s);
    return static_cast<int32_t>(g * GROUP + first_lane(s, row.peak));
  }
  return 0;  // nothing but NaN
}

// The sum of e^(x - peak) over the row
static double total_mass(const Row& row) {
  double total = 0.0;
  for (int64_t g = 0; g < row.groups; g++) {
    Vec s[4], part = zero();
    load_group(row, g * GROUP, s);
    for (int j = 0; j < 4; j++) part = add(part, exp_vec(sub(s[j], set1(row.peak))));
    total += sum(part);
  }
  return total;
}

// ---- cuts ----

IPX_INLINE float next_above(float x) {  // of a number
  uint32_t bits;
  float canonical = x + 0.0f;
  memcpy(&bits, &canonical, 4);
  bits = canonical < 0.0f ? bits - 1 : bits + 1;
  if (x == __builtin_inff()) return x;
  memcpy(&canonical, &bits, 4);
  return canonical;
}

// Values that the cut keeps, -inf for the others
IPX_INLINE Vec inside(Vec s, const Cut& cut, int64_t start) {
  Vec equal = keep_range(s, 0, max64(0, cut.last + 1 - start), set1(LOWEST));
  equal = where_less(equal, set1(cut.value), set1(LOWEST), equal);
  return maximum(where_less(s, set1(next_above(cut.value)), set1(LOWEST), s), equal);
}

// All tokens inside the cut but those at -inf
static void collect(const Row& row, const Cut& cut, Candidates& found) {
  found.count = 0;
  for (int64_t g = 0; g < row.groups; g++) {
    if (row.peaks[g] < cut.value || row.peaks[g] == LOWEST) continue;
    Vec s[4];
    load_group(row, g * GROUP, s);
    for (int j = 0; j < 4; j++) {
      int64_t start = g * GROUP + j * W;
      float values[W];
      Vec kept = inside(s[j], cut, start);
      store(values, kept);
      for (uint32_t lanes = mask_less(set1(LOWEST), kept); lanes; lanes &= lanes - 1) {
        int lane = __builtin_ctz(lanes);
        found.value[found.count] = values[lane];
        found.weight[found.count] = 1.0f;
        found.id[found.count++] = static_cast<int32_t>(start + lane);
      }
    }
  }
}

// The bits of a float as an integer that falls as the float rises
IPX_INLINE uint32_t falling(float x) {
  uint32_t bits;
  x += 0.0f;  // -0.0 becomes 0.0
  memcpy(&bits, &x, 4);
  return bits >> 31 ? bits : ~bits & 0x7fffffff;
}

// The cut after the first candidate, in falling order, with which the weights reach `target`; after
// the last one if they never do. Shortens the list.
static Cut select(Candidates& list, double target) {
  double before = 0.0;
  for (int shift = 32 - BIN_BITS; list.count > 1; shift = shift > BIN_BITS ? shift - BIN_BITS : 0) {
    double bins[1 << BIN_BITS] = {};
    auto bin = [&](int64_t i) { return falling(list.value[i]) >> shift & ((1 << BIN_BITS) - 1); };
    for (int64_t i = 0; i < list.count; i++) bins[bin(i)] += list.weight[i];
    uint32_t chosen = 0;
    double sum = before;
    for (uint32_t b = 0; b < 1 << BIN_BITS; b++) {
      if (bins[b] <= 0.0) continue;
      chosen = b, before = sum;
      sum += bins[b];
      if (sum >= target) break;
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < list.count; i++) {
      if (bin(i) != chosen) continue;
      list.value[kept] = list.value[i], list.weight[kept] = list.weight[i];
      list.id[kept++] = list.id[i];
    }
    list.count = kept;
    if (!shift) break;
  }
  int64_t last = 0;  // all that is left are equals
  for (; last + 1 < list.count && (before += list.weight[last]) < target;) last++;
  return {list.value[last], list.id[last]};
}

static bool open_candidates(Candidates& list, int64_t vocab) {
  int64_t room = round_up(vocab, GROUP);
  list.value = static_cast<float*>(scratch(1, room * 12));
  if (!list.value) return false;
  list.weight = list.value + room, list.id = reinterpret_cast<int32_t*>(list.weight + room);
  list.count = 0;
  return true;
}

// The cut that leaves the k largest
static Cut cut_count(const Row& row, int64_t k, Candidates& list) {
  Cut all{LOWEST, row.vocab};
  if (k < row.groups) {
    for (int64_t g = 0; g < row.groups; g++) {
      if (row.peaks[g] == LOWEST) continue;
      list.value[list.count] = row.peaks[g], list.weight[list.count] = 1.0f;
      list.id[list.count++] = 0;
    }
    if (list.count > k) all.value = select(list, static_cast<double>(k)).value;
  }
  collect(row, all, list);
  return list.count > k ? select(list, static_cast<double>(k)) : all;
}

// The cut inside `cut` with which the probabilities reach p
static Cut cut_mass(const Row& row, Cut cut, double p, Candidates& list) {
  double total = 0.0;
  bool whole = cut.value == LOWEST;
  if (whole) {
    total = total_mass(row);
    double least = 0.999 * (1.0 - p) * total / static_cast<double>(row.vocab);
    double slack = 1e-6 * __builtin_fabs(row.peak);
    if (least > 0.0) cut.value = static_cast<float>(row.peak + __builtin_log(least) - slack);
  }
  collect(row, cut, list);
  for (int64_t i = 0; i < list.count; i += W) {
    Vec x = sub(load(list.value + i), set1(row.peak));
    store(list.weight + i, exp_vec(x));
  }
  for (int64_t i = 0; !whole && i < list.count; i++) total += list.weight[i];
  return list.count ? select(list, p * total) : cut;
}

// ---- draw ----

struct Search {
  const Row* row;
  Cut cut;
  float min_p, best;
  int64_t winner;
};

// Scores one group, if it can hold the best token
static void visit(Search& search, const Place& place, int64_t g) {
  Vec s[4], noise[4];
  load_group(*search.row, g * GROUP, s);
  for (int j = 0; j < 4; j++) {
    if (search.cut.value > LOWEST) s[j] = inside(s[j], search.cut, g * GROUP + j * W);
    if (search.min_p <= 0.0f) continue;
    Vec share = exp_vec(sub(s[j], set1(search.row->peak)));
    s[j] = where_less(share, set1(search.min_p), set1(LOWEST), s[j]);
  }
  if (largest_of(s) + MOST_NOISE < search.best) return;
  gumbel(place, g * GROUP, noise);
  for (int j = 0; j < 4; j++) s[j] = add(s[j], noise[j]);
  float top = largest_of(s);
  if (top < search.best || top == LOWEST) return;
  int64_t id = g * GROUP + first_lane(s, top);
  if (top > search.best || id < search.winner) search.best = top, search.winner = id;
}

static int32_t draw_inside(const Row& row, const Cut& cut, float min_p, const Place& place) {
  Search search{&row, cut, min_p, LOWEST, 0};
  float least = cut.value;  // of a group's peak
  if (min_p > 0.0f) {
    double slack = 1e-4 + 1e-6 * __builtin_fabs(row.peak);
    float share = static_cast<float>(row.peak + __builtin_log(static_cast<double>(min_p)) - slack);
    if (share > least) least = share;
  }
  visit(search, place, argmax(row) / GROUP);  // a good score early leaves out most of the noise
  for (int64_t g = 0; g < row.groups; g++) {
    if (row.peaks[g] + MOST_NOISE < search.best || row.peaks[g] < least) continue;
    visit(search, place, g);
  }
  return static_cast<int32_t>(min64(search.winner, row.vocab - 1));
}

template <typename Args>
struct SamplingJob {
  const Args* args;
  int* failed;
};

static void draw_rows(const SamplingJob<DrawArgs>& job, int64_t first, int64_t last) {
  const DrawArgs& p = *job.args;
  for (int64_t n = first; n < last; n++) {
    Row row;
    if (p.bitmask) row.bitmask = p.bitmask + n * ceil_div(p.vocab, 32);
    bool cold = p.greedy || !(p.temperature[n] > 0.0f);
    if (!open_row(row, p.logits + n * p.vocab, p.vocab, cold ? 1.0f : p.temperature[n])) {
      __atomic_store_n(job.failed, 1, __ATOMIC_RELAXED);
      return;
    }
    if (cold) {
      p.tokens[n] = argmax(row);
      continue;
    }
    Cut cut{LOWEST, p.vocab};
    float min_p = 0.0f;
    if (!p.unfiltered) {
      Candidates list;
      bool counts = p.top_k[n] > 0 && p.top_k[n] < p.vocab, shares = p.top_p[n] < 1.0f;
      if ((counts || shares) && !open_candidates(list, p.vocab)) {
        __atomic_store_n(job.failed, 1, __ATOMIC_RELAXED);
        return;
      }
      if (counts) cut = cut_count(row, p.top_k[n], list);
      if (shares) cut = cut_mass(row, cut, static_cast<double>(p.top_p[n]), list);
      min_p = p.min_p[n];
    }
    Place place{{p.seed[2 * n], p.seed[2 * n + 1]}, p.position[n], p.sample_index[n]};
    p.tokens[n] = draw_inside(row, cut, min_p, place);
  }
}

template <typename Args>
static int sample_rows(const Args& args, void (*rows)(const SamplingJob<Args>&, int64_t, int64_t)) {
  int failed = 0;
  SamplingJob<Args> job{&args, &failed};
  for_rows(job, args.rows, args.vocab, rows);
  return failed ? 12 : 0;  // ENOMEM
}

static int draw(const void* args) {
  return sample_rows(*static_cast<const DrawArgs*>(args), draw_rows);
}

// ---- logprobs ----

// Sorts ids by falling value, the lower id first among equals (heap sort)
static void sort_falling(const float* values, int32_t* ids, int64_t count) {
  auto after = [&](int32_t a, int32_t b) {
    uint32_t x = falling(values[a]), y = falling(values[b]);
    return x != y ? x > y : a > b;
  };
  auto sink = [&](int64_t at, int64_t end) {
    for (int64_t child; (child = 2 * at + 1) < end; at = child) {
      if (child + 1 < end && after(ids[child + 1], ids[child])) child++;
      if (!after(ids[child], ids[at])) return;
      int32_t id = ids[at];
      ids[at] = ids[child], ids[child] = id;
    }
  };
  for (int64_t i = count / 2; i-- > 0;) sink(i, count);
  for (int64_t end = count - 1; end > 0; end--) {
    int32_t id = ids[0];
    ids[0] = ids[end], ids[end] = id;
    sink(0, end);
  }
}

// The `top` most likely ids
static void most_likely(const Row& row, int64_t top, int32_t* ids, Candidates& list) {
  Cut cut = cut_count(row, top, list);
  collect(row, cut, list);
  int64_t count = min64(top, list.count);
  for (int64_t i = 0; i < count; i++) ids[i] = list.id[i];
  sort_falling(row.logits, ids, count);
  for (int64_t id = 0; count < top && id < row.vocab; id++) {  // masked tokens come last
    if (!(row.logits[id] > LOWEST)) ids[count++] = static_cast<int32_t>(id);
  }
}

static void logprob_rows(const SamplingJob<LogprobArgs>& job, int64_t first, int64_t last) {
  const LogprobArgs& p = *job.args;
  for (int64_t n = first; n < last; n++) {
    Row row;
    Candidates list;
    if (!open_row(row, p.logits + n * p.vocab, p.vocab, 1.0f) ||
        (p.top && !open_candidates(list, p.vocab))) {
      __atomic_store_n(job.failed, 1, __ATOMIC_RELAXED);
      return;
    }
    double mass = __builtin_log(total_mass(row)) + row.peak;
    auto logprob = [&](int32_t id) { return static_cast<float>(row.logits[id] - mass); };
    float own = row.logits[p.ids[n]];
    int32_t above = 0;
    for (int64_t g = 0; g < row.groups; g++) {
      if (!(row.peaks[g] > own)) continue;
      Vec s[4];
      load_group(row, g * GROUP, s);
      for (int j = 0; j < 4; j++) above += __builtin_popcount(mask_less(set1(own), s[j]));
    }
    p.logprob[n] = logprob(p.ids[n]);
    p.rank[n] = above + 1;
    if (!p.top) continue;
    int32_t* ids = p.top_ids + n * p.top;
    most_likely(row, p.top, ids, list);
    for (int64_t i = 0; i < p.top; i++) p.top_logprobs[n * p.top + i] = logprob(ids[i]);
  }
}

static int logprobs(const void* args) {
  return sample_rows(*static_cast<const LogprobArgs*>(args), logprob_rows);
}

// ---- filter ----

static void penalize(const FilterArgs& p, int64_t n, float* y) {
  const int32_t* counts = p.counts + n * p.vocab;
  const uint8_t* in_prompt = p.in_prompt + n * p.vocab;
  Vec repetition = set1(p.repetition[n]), frequency = set1(p.frequency[n]);
  Vec presence = set1(p.presence[n]), one = set1(1.0f);
  for (int64_t c = 0; c < p.vocab; c += W) {
    int64_t left = min64(W, p.vocab - c);
    float prompt[W] = {};
    for (int64_t i = 0; i < left; i++) prompt[i] = in_prompt[c + i];
    Vec x = load_n(y + c, left), count = to_float(raw_load_n(counts + c, left));
    Vec factor = where_less(zero(), maximum(count, load(prompt)), repetition, one);
    x = where_less(zero(), x, divide(x, factor), mul(x, factor));
    x = sub(x, mul(frequency, count));
    store_n(y + c, sub(x, mul(presence, where_less(zero(), count, one, zero()))), left);
  }
}

static void filter_rows(const FilterArgs& p, int64_t first, int64_t last) {
  int64_t words = ceil_div(p.vocab, 32);
  for (int64_t n = first; n < last; n++) {
    float* y = p.out + n * p.vocab;
    if (p.out != p.logits) memcpy(y, p.logits + n * p.vocab, p.vocab * 4);
    if (p.counts) penalize(p, n, y);
    for (int64_t c = 0; p.bias && c < p.vocab; c += W) {
      int64_t left = p.vocab - c;
      store_n(y + c, add(load_n(y + c, left), load_n(p.bias + n * p.vocab + c, left)), left);
    }
    for (int64_t i = 0; p.banned && i < p.most_banned; i++) {
      int32_t id = p.banned[n * p.most_banned + i];
      if (id >= 0 && id < p.vocab) y[id] = LOWEST;
    }
    for (int64_t w = 0; p.bitmask && w < words; w++) {
      int64_t end = min64(32, p.vocab - 32 * w);
      uint32_t off = ~p.bitmask[n * words + w];
      if (end < 32) off &= (1u << end) - 1;
      for (int64_t i = 0; off && i < 32; i += W, off = W < 32 ? off >> (W % 32) : 0) {
        store_lanes(y + 32 * w + i, off, set1(LOWEST));
      }
    }
  }
}

static int filter(const void* args) {
  const auto& p = *static_cast<const FilterArgs*>(args);
  return for_rows(p, p.rows, p.vocab, filter_rows);
}

}  // namespace IPX_ISA
}  // namespace ipx
