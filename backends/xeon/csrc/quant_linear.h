// Quantized linear layer with integer dot products: int8 or int4 weights, int8 inputs.
//
// Computes y[m, n] = sum over groups g of scale[n, g] * input_scale[m, g] * dot(q[n], x[m])
//                    + offset[n, g] * input_scale[m, g] * sum(x[m]) in g, plus bias
// Moves    N K bytes (int8) or N K / 2 (int4) and the scales, once per pass over the rows of a
//          register tile; later passes read them from cache. Limit: DRAM for few rows, then the
//          dot products, 2 M N K operations, 128 a vpdpbusd.
// Reaches  beside the dense kernel of the same shape, one thread of a busy Zen 4: one row, int8 and
//          int4 the same bytes a second as bf16, so 2 and 3.5 times its speed; 64 rows, 1.85
//          times its operations (int8), 1.6 to 1.75 with groups. ci/bench/cpu/linears.py.
//
// Technique: the blocks of linear.h with four inputs in a lane (quant_pack.h). Weights are the
// operand without sign, so that one correction per row and group, and none per column, mends the
// zero: -zero * sum(x). int4 lanes hold two quads of inputs, taken apart by a mask and a shift.
// A group's scales lie before its weights: one stream, all of it prefetched (measured: int4 in
// groups of 32 at 1.7 times the speed that it has with the scales at the start of a block).
// Products are exact integers; groups are added in the order of K by one multiply-add each, in
// every tile alike, so the bits of a row never depend on the batch. Without VNNI the products are
// widened (int8) or added in pairs of 16 bits, which they fit (int4).
//
// A tile has 8 rows x 3 vectors (AVX-512); with groups, whose results are kept in float beside
// the integers of the running one, 4 rows.
#pragma once
#include <atomic>

#include "abi.h"
#include "linear.h"
#include "quant_float.h"
#include "quant_pack.h"
#include "quant_rows.h"
#include "quant_tiles.h"
#include "simd.h"

namespace ipx {
namespace IPX_ISA {

// c + dot products of `steps` lanes of weights with MR rows of inputs
template <int BITS, int MR, int NR>
IPX_INLINE void quant_dot(Raw (&c)[MR][NR], const char* w, const int8_t* x, int64_t ldx,
                          int64_t steps, Fetch& fetch) {
  constexpr int INPUTS = BITS == 8 ? 4 : 8;  // of a lane
  auto quad = [&](int m, int part) {
    uint32_t four;
    memcpy(&four, x + m * ldx + part * 4, 4);
    return raw_set1(four);
  };
  for (int64_t i = 0; i < steps; i++, w += 4 * LINEAR_BLOCK, x += INPUTS) {
    fetch.step<NR * W / 16>(w);
    Raw lanes[NR], high[NR];
    IPX_UNROLL for (int n = 0; n < NR; n++) {
      lanes[n] = raw_load(w + 4 * n * W);
      if (BITS == 4) {
        high[n] = raw_and(shift_right<4>(lanes[n]), raw_set1(0x0f0f0f0f));
        lanes[n] = raw_and(lanes[n], raw_set1(0x0f0f0f0f));
      }
    }
    IPX_UNROLL for (int m = 0; m < MR; m++) {
      Raw a = quad(m, 0), b = BITS == 4 ? quad(m, 1) : a;
      IPX_UNROLL for (int n = 0; n < NR; n++) {
        c[m][n] = BITS == 4 ? dot_nibbles(c[m][n], lanes[n], a, high[n], b)
                            : dot_bytes(c[m][n], lanes[n], a);
      }
    }
  }
}

// One group: dot products of columns `column` on of a block with MR rows from `row` -> out [MR][48]
template <int BITS, int MR, int NR>
static void plain_tile(const QuantJob& job, const QuantRows& r, int64_t row, const char* block,
                       int64_t column, float* out, Fetch fetch) {
  const QuantLayout& l = job.layout;
  Raw dot[MR][NR];
  IPX_UNROLL for (int m = 0; m < MR; m++) {
    IPX_UNROLL for (int n = 0; n < NR; n++) {
      dot[m][n] = raw_set1(static_cast<uint32_t>(r.start[row + m]));
    }
  }
  quant_dot<BITS, MR, NR>(dot, block + l.head + 4 * column, r.bytes + row * r.ldb, r.ldb,
                          l.depth / (BITS == 8 ? 4 : 8), fetch);
  IPX_UNROLL for (int m = 0; m < MR; m++) {
    IPX_UNROLL for (int n = 0; n < NR; n++) {
      store(out + m * LINEAR_BLOCK + column + n * W, to_float(dot[m][n]));
    }
  }
}

// Several groups: their scaled sums -> out [MR][48]
template <int BITS, int MR, int NR>
static void grouped_tile(const QuantJob& job, const QuantRows& r, int64_t row, const char* block,
                         int64_t column, float* out, Fetch fetch) {
  const QuantLayout& l = job.layout;
  const bool half = job.args->half_scales, offsets = job.args->offsets, steps = r.scale_step;
  const int8_t* x = r.bytes + row * r.ldb;
  const int32_t* start = r.start + row * l.groups;
  const float* sums = r.sum + row * l.groups;
  const float* scale = r.scale + row * r.scales;
  Vec total[MR][NR];
  IPX_UNROLL for (int m = 0; m < MR; m++) {
    IPX_UNROLL for (int n = 0; n < NR; n++) total[m][n] = zero();
  }
  for (int64_t g = 0; g < l.groups; g++, block += l.stride) {
    if (g % fetch.passes == 0) {
      for (int64_t i = 0; i < l.head; i += 64) prefetch(block + i + fetch.distance);
    }
    int64_t inputs = min64(l.group, l.depth - g * l.group);
    Raw dot[MR][NR];
    IPX_UNROLL for (int m = 0; m < MR; m++) {
      IPX_UNROLL for (int n = 0; n < NR; n++) {
        dot[m][n] = raw_set1(static_cast<uint32_t>(start[m * l.groups + g]));
      }
    }
    quant_dot<BITS, MR, NR>(dot, block + l.head + 4 * column, x + g * l.group, r.ldb,
                            inputs / (BITS == 8 ? 4 : 8), fetch);
    IPX_UNROLL for (int n = 0; n < NR; n++) {
      Vec s = scale_at(block, column + n * W, half);
      IPX_UNROLL for (int m = 0; m < MR; m++) {
        Vec y = to_float(dot[m][n]);
        if (steps) y = mul(y, set1(scale[m * r.scales + g]));
        total[m][n] = fma(y, s, total[m][n]);
      }
    }
    if (offsets) {
      IPX_UNROLL for (int n = 0; n < NR; n++) {
        Vec o = scale_at(block + l.scales, column + n * W, half);
        IPX_UNROLL for (int m = 0; m < MR; m++) {
          float y = sums[m * l.groups + g];
          if (steps) y *= scale[m * r.scales + g];
          total[m][n] = fma(set1(y), o, total[m][n]);
        }
      }
    }
  }
  IPX_UNROLL for (int m = 0; m < MR; m++) {
    Vec s = set1(steps ? 1.0f : scale[m]);
    IPX_UNROLL for (int n = 0; n < NR; n++) {
      store(out + m * LINEAR_BLOCK + column + n * W, mul(total[m][n], s));
    }
  }
}

template <int BITS, bool GROUPED, int MR>
static void quant_tiles(const QuantJob& job, const QuantRows& r, int64_t row, int64_t rows,
                        const char* block, float* out, Fetch fetch) {
  if constexpr (MR > 1) {
    if (rows < MR) return quant_tiles<BITS, GROUPED, MR - 1>(job, r, row, rows, block, out, fetch);
  }
  constexpr auto tile = GROUPED ? grouped_tile<BITS, MR, LINEAR_VECS>
                                : plain_tile<BITS, MR, LINEAR_VECS>;
  for (int64_t n = 0; n < LINEAR_BLOCK; n += LINEAR_VECS * W) {
    tile(job, r, row, block, n, out, fetch);
  }
}

template <typename T, int BITS, bool GROUPED>
static void quant_body(void* context, int64_t item) {
  constexpr int64_t ROWS = GROUPED ? LINEAR_ROWS / 2 : LINEAR_ROWS;
  auto& job = *static_cast<QuantJob*>(context);
  const QuantLinearArgs& p = *job.args;
  const QuantRows* rows_made = rows_of<T>(job);
  if (!rows_made) {
    __atomic_store_n(&job.failed, 1, __ATOMIC_RELAXED);
    return;
  }
  const QuantRows& r = *rows_made;
  alignas(64) float dots[ROWS * LINEAR_BLOCK], tile[ROWS * LINEAR_BLOCK];
  float* gates;
  if (!gate_buffer(p, gates)) {
    __atomic_store_n(&job.failed, 1, __ATOMIC_RELAXED);
    return;
  }
  int64_t blocks = packed_blocks(p);
  int64_t last = min64((item + 1) * job.blocks_per_item, blocks);
  for (int64_t b = item * job.blocks_per_item; b < last; b++) {
    const char* block = static_cast<const char*>(p.packed) + b * job.layout.block;
    for (int64_t row = 0; row < p.rows; row += ROWS) {
      int64_t rows = min64(ROWS, p.rows - row);
      Fetch fetch = Fetch::of(row / ROWS, ceil_div(p.rows, ROWS), job.layout.block);
      fetch_outputs<T>(p, row, rows, b);
      quant_tiles<BITS, GROUPED, ROWS>(job, r, row, rows, block, GROUPED ? tile : dots, fetch);
      if (!GROUPED) {
        memset(tile, 0, sizeof tile);
        add_group(job, r, row, rows, block, 0, dots, tile);
      }
      finish_tile<T>(p, tile, row, rows, b, gates);
    }
  }
}

// An item is at least 16 KiB of weights per pass, and there are enough of them to balance.
static int quant_items(QuantJob& job, ItemBody body) {
  int64_t blocks = packed_blocks(*job.args);
  job.blocks_per_item = max64(ceil_div(16384, job.layout.block), ceil_div(blocks, 4096));
  if (job.args->glu) job.blocks_per_item = round_up(job.blocks_per_item, 2);
  run_parallel(body, &job, ceil_div(blocks, job.blocks_per_item));
  return job.failed ? 12 : 0;  // ENOMEM
}

template <typename T>
static int run_quant(const QuantLinearArgs& p) {
  static std::atomic<uint32_t> calls{0};
  QuantJob job{&p, quant_layout(p, p.offsets), {}, 1, 0, 0};
  bool integers = p.input == INPUT_INT8, grouped = job.layout.groups > 1;
  if (integers && p.rows * p.inputs < OWN_ROWS) {
    while (!job.own_rows) job.own_rows = calls.fetch_add(1, std::memory_order_relaxed);
  } else if (!quant_rows<T>(p, job.layout, false, job.rows)) {
    return 12;  // ENOMEM
  }
  if (!integers) return quant_items(job, quant_float_body<T>);
#if defined(IPX_TILES)
  if (suits_panels(job)) return quant_panels<T>(job);
  if (p.rows >= TILES_FROM_ROWS) {
    bool int4 = p.weight == WEIGHT_INT4;
    return quant_items(job, int4 ? quant_tile_body<T, 4> : quant_tile_body<T, 8>);
  }
#endif
  if (p.weight == WEIGHT_INT4) {
    return quant_items(job, grouped ? quant_body<T, 4, true> : quant_body<T, 4, false>);
  }
  return quant_items(job, grouped ? quant_body<T, 8, true> : quant_body<T, 8, false>);
}

static int quant_linear(const void* args) {
  const auto& p = *static_cast<const QuantLinearArgs*>(args);
  return p.f32 ? run_quant<float>(p) : run_quant<bf16>(p);
}

}  // namespace IPX_ISA
}  // namespace ipx
