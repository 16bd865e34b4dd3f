// Quantized linear layer with float dot products: weights int8, int4 or fp8 (e4m3), inputs as they
// are (weight-only) or fp8 values.
//
// Computes the sum of quant_linear.h with q and x in bfloat16 (float32 for float32 models), which
//          holds every q exactly: nothing is rounded but the sums.
// Moves    the packed weights once; each block is turned into the blocks of linear.h in cache and
//          then multiplied by its kernel, group by group. Limit: the conversion for few rows,
//          then the products, as in linear.h.
// Reaches  beside the dense kernel of the same shape, one thread of a busy Zen 4: one row, about
//          0.75 times its speed; 64 rows, 0.7 to 0.9 times. ci/bench/cpu/linears.py.
#pragma once
#include "abi.h"
#include "linear.h"
#include "quant_pack.h"
#include "quant_rows.h"
#include "simd.h"

namespace ipx {
namespace IPX_ISA {

// inputs k and k + 1 of each lane -> as they are kept at `to`, [K/2][48] pairs or [K][48] floats
template <bool PAIRS>
IPX_INLINE void keep_pair(uint32_t* to, int64_t k, Vec even, Vec odd) {
  if constexpr (PAIRS) {  // both are bf16 exactly
    Raw high = raw_and(as_raw(odd), raw_set1(0xffff0000));
    raw_store(to + k / 2 * LINEAR_BLOCK, raw_xor(shift_right<16>(as_raw(even)), high));
  } else {
    raw_store(to + k * LINEAR_BLOCK, as_raw(even));
    raw_store(to + (k + 1) * LINEAR_BLOCK, as_raw(odd));
  }
}

template <int BITS, int BIT>
IPX_INLINE Vec integer_at(Raw lanes) {
  Raw stored = raw_and(shift_right<BIT>(lanes), raw_set1((1u << BITS) - 1));
  return sub(to_float(stored), set1(static_cast<float>(1 << (BITS - 1))));
}

// the weights of a lane, of inputs k on
template <WeightKind KIND, bool PAIRS>
IPX_INLINE void unpack_lanes(Raw lanes, uint32_t* to, int64_t k) {
  if constexpr (KIND == WEIGHT_FP8) {
    Raw first = fp8_pairs(raw_and(lanes, raw_set1(0x00ff00ff)));
    Raw second = fp8_pairs(raw_and(shift_right<8>(lanes), raw_set1(0x00ff00ff)));
    if constexpr (PAIRS) {
      raw_store(to + k / 2 * LINEAR_BLOCK, first);
      raw_store(to + (k / 2 + 1) * LINEAR_BLOCK, second);
    } else {
      keep_pair<false>(to, k, low_half(first), high_half(first));
      keep_pair<false>(to, k + 2, low_half(second), high_half(second));
    }
  } else if constexpr (KIND == WEIGHT_INT8) {
    keep_pair<PAIRS>(to, k, integer_at<8, 0>(lanes), integer_at<8, 8>(lanes));
    keep_pair<PAIRS>(to, k + 2, integer_at<8, 16>(lanes), integer_at<8, 24>(lanes));
  } else {
    keep_pair<PAIRS>(to, k, integer_at<4, 0>(lanes), integer_at<4, 8>(lanes));
    keep_pair<PAIRS>(to, k + 2, integer_at<4, 16>(lanes), integer_at<4, 24>(lanes));
    keep_pair<PAIRS>(to, k + 4, integer_at<4, 4>(lanes), integer_at<4, 12>(lanes));
    keep_pair<PAIRS>(to, k + 6, integer_at<4, 20>(lanes), integer_at<4, 28>(lanes));
  }
}

// a group's weights without their scales -> [inputs/2][48] pairs or [inputs][48] floats
template <WeightKind KIND, bool PAIRS>
static void unpack_group(const char* from, uint32_t* to, int64_t inputs) {
  for (int64_t k = 0; k < inputs; k += KIND == WEIGHT_INT4 ? 8 : 4, from += 4 * LINEAR_BLOCK) {
    IPX_UNROLL for (int64_t n = 0; n < LINEAR_BLOCK; n += W) {
      if (n % 16 == 0) prefetch(from + 4 * n + PREFETCH_AHEAD);
      unpack_lanes<KIND, PAIRS>(raw_load(from + 4 * n), to + n, k);
    }
  }
}

template <bool PAIRS>
static void unpack(const QuantLinearArgs& p, const char* from, uint32_t* to, int64_t inputs) {
  switch (p.weight) {
    case WEIGHT_INT8: return unpack_group<WEIGHT_INT8, PAIRS>(from, to, inputs);
    case WEIGHT_INT4: return unpack_group<WEIGHT_INT4, PAIRS>(from, to, inputs);
    default: return unpack_group<WEIGHT_FP8, PAIRS>(from, to, inputs);
  }
}

// out [rows][48] += group g's products `dots` and sums, scaled
static void add_group(const QuantJob& job, const QuantRows& in, int64_t row, int64_t rows,
                      const char* block, int64_t g, const float* dots, float* out) {
  const QuantLinearArgs& p = *job.args;
  const QuantLayout& l = job.layout;
  const char* scales = block + g * l.stride;
  for (int64_t r = row; r < row + rows; r++, dots += LINEAR_BLOCK, out += LINEAR_BLOCK) {
    Vec a = set1(in.scale[r * in.scales + g * in.scale_step]);
    Vec s = set1(in.sum[r * l.groups + g]);
    for (int64_t n = 0; n < LINEAR_BLOCK; n += W) {
      Vec y = mul(load(dots + n), scale_at(scales, n, p.half_scales));
      if (p.offsets) y = fma(s, scale_at(scales + l.scales, n, p.half_scales), y);
      store(out + n, fma(y, a, load(out + n)));
    }
  }
}

template <typename T>
static void quant_float_body(void* context, int64_t item) {
  constexpr bool FLOATS = sizeof(T) == 4;
  constexpr Dot MODE = FLOATS ? Dot::Floats : DOT_PAIRS ? Dot::Pairs : Dot::SplitPairs;
  auto& job = *static_cast<QuantJob*>(context);
  const QuantLinearArgs& p = *job.args;
  const QuantLayout& l = job.layout;
  const QuantRows& in = job.rows;
  int64_t lane_inputs = FLOATS ? 1 : 2, x_lanes = MODE == Dot::Pairs ? 2 : 1;
  auto* weights = static_cast<uint32_t*>(scratch(3, l.depth / lane_inputs * LINEAR_BLOCK * 4));
  if (!weights) {
    __atomic_store_n(&job.failed, 1, __ATOMIC_RELAXED);
    return;
  }
  constexpr int64_t ROWS = Products<MODE>::ROWS;
  Products<MODE> multiply(p.rows, l.group / lane_inputs);
  alignas(64) float dots[ROWS * LINEAR_BLOCK], tile[ROWS * LINEAR_BLOCK];
  int64_t blocks = ceil_div(p.outputs, LINEAR_BLOCK);
  int64_t last = min64((item + 1) * job.blocks_per_item, blocks);
  for (int64_t b = item * job.blocks_per_item; b < last; b++) {
    const char* block = static_cast<const char*>(p.packed) + b * l.block;
    for (int64_t k = 0, g = 0; g < l.groups; k += l.group, g++) {
      unpack<!FLOATS>(p, block + g * l.stride + l.head, weights + k / lane_inputs * LINEAR_BLOCK,
                      min64(l.group, l.depth - k));
    }
    for (int64_t row = 0; row < p.rows; row += ROWS) {
      int64_t first = multiply.first(row), rows = min64(ROWS, p.rows - first);
      memset(tile, 0, sizeof tile);
      for (int64_t g = 0; g < l.groups; g++) {
        int64_t k = g * l.group, inputs = min64(l.group, l.depth - k);
        multiply(rows, in.lanes + first * in.ldx + k / x_lanes, in.ldx,
                 weights + k / lane_inputs * LINEAR_BLOCK, inputs / lane_inputs, dots,
                 Fetch::none());
        add_group(job, in, first, rows, block, g, dots, tile);
      }
      finish_tile<T>(p, tile, first, rows, b * LINEAR_BLOCK);
    }
  }
}

}  // namespace IPX_ISA
}  // namespace ipx
