// Attention over int8 pages: what attention.h does otherwise for them.
//
// A row of a page (one token, one head) is D codes and the float32 scale behind them, so decode
// moves 2 * S * Hkv * (D + 4) bytes, 53 % of bfloat16's at D = 64. Keys' scales multiply the
// scores, values' scales the probabilities: the products themselves are of codes.
//
// With VNNI they are integer products. Queries, and the probabilities of a block, become 16-bit
// integers, a high and a low byte with a row of the product each, so that next to nothing is lost
// beside the codes' own rounding (q: 2^-15 of the row's largest, p: 2^-16). Four tokens or four
// dimensions share a 32-bit lane. Integer sums are exact: their bits cannot depend on tiles. Other
// instruction sets convert codes to floats while packing, which is exact too.
#pragma once
#include "abi.h"
#include "simd.h"

namespace ipx {
namespace IPX_ISA {

constexpr int32_t QUERY_MAX = 127 * 256 + 127;
constexpr int32_t WEIGHT_MAX = 255 * 256 + 255;

// x [n] -> high and low bytes, x = step * (256 high + low); returns step, NaN if x is not finite.
// `start` is what a product with codes + 128 is too large by, negative.
template <typename T>
static float quantize_query(const T* x, int64_t n, int8_t* high, int8_t* low, int32_t* start) {
  float peak = largest_of(x, n), step = peak / QUERY_MAX, inverse = QUERY_MAX / peak;
  if (!(peak < __builtin_inff())) {
    step = __builtin_nanf("");
    inverse = 0.0f;
  } else if (peak < 0x1p-100f) {
    step = inverse = 0.0f;
  }
  Raw total = raw_zero();
  for (int64_t c = 0; c < n; c += W) {
    Raw q = inverse == 0.0f ? raw_zero() : to_int(mul(load_n(x + c, n - c), set1(inverse)));
    Raw h = shift_signed<8>(raw_add(q, raw_set1(128)));
    store_bytes(high + c, h);
    store_bytes(low + c, raw_sub(q, shift_left<8>(h)));
    total = raw_add(total, q);
  }
  *start = -128 * raw_sum(total);
  return step;
}

// out[c] = step * (256 * high[c] + low[c] + start), n a multiple of W
IPX_INLINE void join_bytes(const int32_t* high, const int32_t* low, int32_t start, float step,
                           int64_t n, float* out) {
  for (int64_t c = 0; c < n; c += W) {
    Raw x = raw_add(shift_left<8>(raw_load(high + c)), raw_load(low + c));
    store(out + c, mul(to_float(raw_add(x, raw_set1(static_cast<uint32_t>(start)))), set1(step)));
  }
}

// weights [first, last) -> high and low bytes in the same way, without sign; returns step
static inline float quantize_weights(const float* x, int64_t first, int64_t last, Vec peaks,
                                     uint8_t* high, uint8_t* low) {
  float peak = largest(peaks), step = peak / WEIGHT_MAX;
  float inverse = peak < 0x1p-100f ? 0.0f : WEIGHT_MAX / peak;
  for (int64_t t = first; t < last; t += W) {
    Raw q = to_int(mul(load(x + t), set1(inverse)));
    store_low_bytes(high + t, shift_right<8>(q));
    store_low_bytes(low + t, q);
  }
  return step;
}

// out[t] = scale of token t, 0 of those outside [first, last), up to a whole vector
static inline void gather_scales(const int8_t* rows, const int64_t* offset, int64_t first,
                                 int64_t last, int64_t count, int64_t head_dim, float* out) {
  for (int64_t t = 0; t < round_up(count, W); t++) {
    out[t] = 0.0f;
    if (t >= first && t < last) memcpy(out + t, rows + offset[t] + head_dim, 4);
  }
}

// out[i][width]: codes of tokens 4i to 4i + 3 in one lane, those outside [first, last) zero
template <typename Fetch>
static void pack_value_bytes(const int8_t* values, const int64_t* offset, int64_t first,
                             int64_t last, int64_t count, int64_t head_dim, int64_t width,
                             const Fetch& ahead, uint32_t* out) {
  alignas(64) static const int8_t nothing[256] = {};
  int8_t padded[4][W];
  for (int64_t t = 0; t < count; t += 4) {
    ahead.fetch(t, t + 4);
    const int8_t* row[4];
    for (int i = 0; i < 4; i++) {
      row[i] = t + i >= first && t + i < last ? values + offset[t + i] : nothing;
    }
    uint32_t* to = out + t / 4 * width;
    int64_t whole = head_dim / W * W;
    for (int64_t c = 0; c < whole; c += W) {
      raw_store(to + c, interleave(row[0] + c, row[1] + c, row[2] + c, row[3] + c));
    }
    if (whole < width) {
      memset(padded, 0, sizeof padded);
      for (int i = 0; i < 4; i++) memcpy(padded[i], row[i] + whole, head_dim - whole);
      raw_store(to + whole, interleave(padded[0], padded[1], padded[2], padded[3]));
    }
  }
  ahead.rest(round_up(count, 4));
}

}  // namespace IPX_ISA
}  // namespace ipx
