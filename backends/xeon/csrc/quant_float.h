// Quantized linear layer with float dot products: weights int8, int4 or fp8 (e4m3), inputs as they
// are (weight-only) or fp8 values.
//
// Computes the sum of quant_linear.h with q and x in bfloat16 (float32 for float32 models), which
//          holds every q exactly: nothing is rounded but the sums.
// Moves    the packed weights once; each block is turned into the blocks of linear.h in cache and
//          then multiplied by its kernel, group by group. Limit: the conversion for few rows (it
//          takes about 7 instructions a vector of weights), then the products, as in linear.h.
// Reaches  ci/bench/cpu/linears.py prints it.
#pragma once
#include "abi.h"
#include "linear.h"
#include "quant_pack.h"
#include "quant_rows.h"
#include "simd.h"

namespace ipx {
namespace IPX_ISA {

// the values of one byte (or nibble) of each lane
template <WeightKind KIND>
IPX_INLINE Vec weight_values(Raw stored) {
  if (KIND != WEIGHT_FP8) return sub(to_float(stored), set1(KIND == WEIGHT_INT8 ? 128.0f : 8.0f));
  // exponent and mantissa where a float has them, 120 too low an exponent
  Raw magnitudes = raw_and(stored, raw_set1(0x7f));
  Vec y = mul(as_vec(shift_left<20>(magnitudes)), set1(0x1p120f));
  y = where_less(set1(464.0f), y, as_vec(raw_set1(0x7fc00000)), y);  // code 0x7f
  return as_vec(raw_xor(as_raw(y), shift_left<24>(raw_and(stored, raw_set1(0x80)))));
}

// a block's weights without their scales -> [K/2][48] pairs or [K][48] floats
template <WeightKind KIND, bool PAIRS>
static void unpack_block(const char* from, uint32_t* to, int64_t depth) {
  constexpr int BITS = KIND == WEIGHT_INT4 ? 4 : 8, VALUES = 32 / BITS;
  const Raw mask = raw_set1((1u << BITS) - 1);
  for (int64_t k = 0; k < depth; k += VALUES, from += 4 * LINEAR_BLOCK) {
    for (int64_t n = 0; n < LINEAR_BLOCK; n += W) {
      prefetch(from + 4 * n + PREFETCH_AHEAD);
      Raw lanes = raw_load(from + 4 * n);
      Vec y[VALUES];
      // byte j: input k + j, or k + j low and k + 4 + j high
      y[0] = weight_values<KIND>(raw_and(lanes, mask));
      y[1] = weight_values<KIND>(raw_and(shift_right<8>(lanes), mask));
      y[2] = weight_values<KIND>(raw_and(shift_right<16>(lanes), mask));
      y[3] = weight_values<KIND>(raw_and(shift_right<24>(lanes), mask));
      if constexpr (BITS == 4) {
        y[4] = weight_values<KIND>(raw_and(shift_right<4>(lanes), mask));
        y[5] = weight_values<KIND>(raw_and(shift_right<12>(lanes), mask));
        y[6] = weight_values<KIND>(raw_and(shift_right<20>(lanes), mask));
        y[7] = weight_values<KIND>(raw_and(shift_right<28>(lanes), mask));
      }
      IPX_UNROLL for (int i = 0; i < VALUES; i += PAIRS ? 2 : 1) {
        uint32_t* at = to + (k + i) / (PAIRS ? 2 : 1) * LINEAR_BLOCK + n;
        if constexpr (PAIRS) {
          Raw odd = raw_and(as_raw(y[i + 1]), raw_set1(0xffff0000));
          raw_store(at, raw_xor(shift_right<16>(as_raw(y[i])), odd));
        } else {
          raw_store(at, as_raw(y[i]));
        }
      }
    }
  }
}

template <bool PAIRS>
static void unpack(const QuantLinearArgs& p, const char* from, uint32_t* to, int64_t depth) {
  switch (p.weight) {
    case WEIGHT_INT8: return unpack_block<WEIGHT_INT8, PAIRS>(from, to, depth);
    case WEIGHT_INT4: return unpack_block<WEIGHT_INT4, PAIRS>(from, to, depth);
    default: return unpack_block<WEIGHT_FP8, PAIRS>(from, to, depth);
  }
}

// out [rows][48] += group g's products `dots` and sums, scaled
static void add_group(const QuantJob& job, int64_t row, int64_t rows, const char* block, int64_t g,
                      const float* dots, float* out) {
  const QuantLinearArgs& p = *job.args;
  const QuantLayout& l = job.layout;
  const char* scales = block + g * l.stride;
  for (int64_t r = row; r < row + rows; r++, dots += LINEAR_BLOCK, out += LINEAR_BLOCK) {
    Vec a = set1(job.rows.scale[r * job.rows.scales + g * job.rows.scale_step]);
    Vec s = set1(job.rows.sum[r * l.groups + g]);
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
  alignas(64) float dots[LINEAR_ROWS * LINEAR_BLOCK], tile[LINEAR_ROWS * LINEAR_BLOCK];
  int64_t blocks = ceil_div(p.outputs, LINEAR_BLOCK);
  int64_t last = min64((item + 1) * job.blocks_per_item, blocks);
  for (int64_t b = item * job.blocks_per_item; b < last; b++) {
    const char* block = static_cast<const char*>(p.packed) + b * l.block;
    for (int64_t k = 0, g = 0; g < l.groups; k += l.group, g++) {
      unpack<!FLOATS>(p, block + g * l.stride + l.head, weights + k / lane_inputs * LINEAR_BLOCK,
                      min64(l.group, l.depth - k));
    }
    for (int64_t row = 0; row < p.rows; row += LINEAR_ROWS) {
      int64_t rows = min64(LINEAR_ROWS, p.rows - row);
      memset(tile, 0, sizeof tile);
      for (int64_t g = 0; g < l.groups; g++) {
        int64_t k = g * l.group, inputs = min64(l.group, l.depth - k);
        linear_rows<MODE>(rows, in.lanes + row * in.ldx + k / x_lanes, in.ldx,
                          weights + k / lane_inputs * LINEAR_BLOCK, inputs / lane_inputs, dots,
                          false);
        add_group(job, row, rows, block, g, dots, tile);
      }
      finish_tile<T>(p, tile, row, rows, b * LINEAR_BLOCK);
    }
  }
}

}  // namespace IPX_ISA
}  // namespace ipx
