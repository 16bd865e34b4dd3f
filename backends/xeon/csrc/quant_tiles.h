// quant_linear.h's products of several rows on matrix tiles (tiles.h): int8 inputs with int8 or
// int4 weights.
//
// Computes the same bits: integer products are exact, and their sums are scaled and added as there.
// Moves    the packed weights once; int4 is taken apart into bytes in cache. Limit: 16 cycles a
//          product of 16 rows x 16 columns x 64 inputs.
#pragma once
#include "abi.h"
#include "quant_float.h"
#include "quant_pack.h"
#include "quant_rows.h"
#include "simd.h"
#include "tiles.h"

namespace ipx {
namespace IPX_ISA {

#if defined(IPX_TILES)
constexpr int64_t TILES_FROM_ROWS = 5;  // by the instructions' cycles; vectors stream fewer as fast

// a group of int4 weights -> [inputs/4][48][4] bytes
static void unpack_nibbles(const char* from, uint32_t* to, int64_t inputs) {
  for (int64_t k = 0; k < inputs; k += 8, from += 4 * LINEAR_BLOCK, to += 2 * LINEAR_BLOCK) {
    IPX_UNROLL for (int64_t n = 0; n < LINEAR_BLOCK; n += W) {
      prefetch(from + 4 * n + PREFETCH_AHEAD);
      Raw lanes = raw_load(from + 4 * n);
      raw_store(to + n, raw_and(lanes, raw_set1(0x0f0f0f0f)));
      raw_store(to + LINEAR_BLOCK + n, raw_and(shift_right<4>(lanes), raw_set1(0x0f0f0f0f)));
    }
  }
}

// dots [rows][48] of group g: integers of stored weights -> floats, the zero taken off
static void to_signed(const QuantJob& job, const QuantRows& in, int64_t row, int64_t rows,
                      int64_t g, float* dots) {
  for (int64_t r = 0; r < rows; r++, dots += LINEAR_BLOCK) {
    Raw start = raw_set1(static_cast<uint32_t>(in.start[(row + r) * job.layout.groups + g]));
    for (int64_t n = 0; n < LINEAR_BLOCK; n += W) {
      store(dots + n, to_float(raw_add(raw_load(dots + n), start)));
    }
  }
}

// out [rows][48] += group g's, scaled as grouped_tile does
static void add_scaled(const QuantJob& job, const QuantRows& in, int64_t row, int64_t rows,
                       const char* scales, int64_t g, const float* dots, float* out) {
  const bool half = job.args->half_scales, offsets = job.args->offsets;
  for (int64_t r = row; r < row + rows; r++, dots += LINEAR_BLOCK, out += LINEAR_BLOCK) {
    float step = in.scale_step ? in.scale[r * in.scales + g] : 1.0f;
    Vec s = set1(in.sum[r * job.layout.groups + g] * step);
    for (int64_t n = 0; n < LINEAR_BLOCK; n += W) {
      Vec y = mul(load(dots + n), set1(step));
      y = fma(y, scale_at(scales, n, half), load(out + n));
      if (offsets) y = fma(s, scale_at(scales + job.layout.scales, n, half), y);
      store(out + n, y);
    }
  }
}

// out [rows][48] times each row's scale, if it has one alone
static void scale_rows(const QuantRows& in, int64_t row, int64_t rows, float* out) {
  if (in.scale_step) return;
  for (int64_t r = row; r < row + rows; r++, out += LINEAR_BLOCK) {
    Vec s = set1(in.scale[r * in.scales]);
    for (int64_t n = 0; n < LINEAR_BLOCK; n += W) store(out + n, mul(load(out + n), s));
  }
}

template <typename T, int BITS>
static void quant_tile_body(void* context, int64_t item) {
  auto& job = *static_cast<QuantJob*>(context);
  const QuantLinearArgs& p = *job.args;
  const QuantLayout& l = job.layout;
  const QuantRows* made = rows_of<T>(job);
  if (!made) {
    __atomic_store_n(&job.failed, 1, __ATOMIC_RELAXED);
    return;
  }
  const QuantRows& in = *made;
  using Multiply = TileProducts<ChosenTiles, true>;
  Multiply multiply(p.rows, l.group / 4);
  uint32_t* bytes = nullptr;  // the block's weights, if they are int4
  if (BITS == 4) {
    bytes = static_cast<uint32_t*>(scratch(3, l.depth * LINEAR_BLOCK));
    if (!bytes) {
      __atomic_store_n(&job.failed, 1, __ATOMIC_RELAXED);
      return;
    }
  }
  alignas(64) float dots[Multiply::ROWS * LINEAR_BLOCK], tile[Multiply::ROWS * LINEAR_BLOCK];
  int64_t blocks = ceil_div(p.outputs, LINEAR_BLOCK);
  int64_t last = min64((item + 1) * job.blocks_per_item, blocks);
  for (int64_t b = item * job.blocks_per_item; b < last; b++) {
    const char* block = static_cast<const char*>(p.packed) + b * l.block;
    for (int64_t k = 0, g = 0; BITS == 4 && g < l.groups; k += l.group, g++) {
      unpack_nibbles(block + g * l.stride + l.head, bytes + k / 4 * LINEAR_BLOCK,
                     min64(l.group, l.depth - k));
    }
    for (int64_t row = 0; row < p.rows; row += Multiply::ROWS) {
      int64_t first = multiply.first(row), rows = min64(Multiply::ROWS, p.rows - first);
      memset(tile, 0, sizeof tile);
      for (int64_t k = 0, g = 0; g < l.groups; k += l.group, g++) {
        const char* group = block + g * l.stride;
        const auto* w = BITS == 4 ? bytes + k / 4 * LINEAR_BLOCK
                                  : reinterpret_cast<const uint32_t*>(group + l.head);
        const auto* x = reinterpret_cast<const uint32_t*>(in.bytes + first * in.ldb + k);
        multiply(rows, x, in.ldb / 4, w, min64(l.group, l.depth - k) / 4, dots,
                 BITS == 8 && row == 0);
        to_signed(job, in, first, rows, g, dots);
        if (l.groups == 1) {
          add_group(job, in, first, rows, block, 0, dots, tile);
        } else {
          add_scaled(job, in, first, rows, group, g, dots, tile);
        }
      }
      if (l.groups > 1) scale_rows(in, first, rows, tile);
      finish_tile<T>(p, tile, first, rows, b * LINEAR_BLOCK);
    }
  }
}
#endif

}  // namespace IPX_ISA
}  // namespace ipx
