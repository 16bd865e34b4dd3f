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
#include "tile_panels.h"
#include "tiles.h"

namespace ipx {
namespace IPX_ISA {

#if defined(IPX_TILES)
constexpr int64_t TILES_FROM_ROWS = 5;  // by the instructions' cycles; vectors stream fewer as fast

constexpr int64_t GROUPS = 4;  // whose products wait in the first cache to be scaled

constexpr TileLanes tile_lanes(int bits) {
  return bits == 8 ? TileLanes::Bytes : TileLanes::SignedBytes;
}

// a group of int4 weights -> [inputs/4][48][4] signed bytes
static void unpack_nibbles(const char* from, uint32_t* to, int64_t inputs) {
  const Raw nibble = raw_set1(0x0f0f0f0f), eight = raw_set1(0x08080808);
  for (int64_t k = 0; k < inputs; k += 8, from += 4 * LINEAR_BLOCK, to += 2 * LINEAR_BLOCK) {
    IPX_UNROLL for (int64_t n = 0; n < LINEAR_BLOCK; n += W) {
      prefetch(from + 4 * n + PREFETCH_AHEAD);
      Raw lanes = raw_load(from + 4 * n);
      raw_store(to + n, _mm512_sub_epi8(raw_and(lanes, nibble), eight));
      lanes = raw_and(shift_right<4>(lanes), nibble);
      raw_store(to + LINEAR_BLOCK + n, _mm512_sub_epi8(lanes, eight));
    }
  }
}

// dots [rows][48] of the only group: integers -> floats, without what stored int8 is too large by
static void to_signed(const QuantJob& job, const QuantRows& in, int64_t row, int64_t rows,
                      bool zero, float* dots) {
  for (int64_t r = row; r < row + rows; r++, dots += LINEAR_BLOCK) {
    Raw start = zero ? raw_zero() : raw_set1(static_cast<uint32_t>(in.start[r]));
    for (int64_t n = 0; n < LINEAR_BLOCK; n += W) {
      store(dots + n, to_float(raw_add(raw_load(dots + n), start)));
    }
  }
}

// A block of weights as tiles take it: bytes as they are stored, int4 taken apart, of GROUPS at a
// time if there is one pass over them
template <int BITS>
struct TileWeights {
  const QuantLayout& l;
  bool at_once;
  uint32_t* bytes;       // int4 only: [groups, inputs / 4][48][4]
  const char* block = nullptr;

  int64_t room() const {
    return LINEAR_BLOCK * (at_once ? l.depth : min64(l.depth, GROUPS * l.group));
  }
  int64_t inputs(int64_t g) const { return min64(l.group, l.depth - g * l.group); }
  const char* group(int64_t g) const { return block + g * l.stride; }
  void begin(const char* packed) {
    block = packed;
    if (at_once) unpack(0, l.groups);
  }
  void unpack(int64_t g, int64_t count) {
    uint32_t* to = bytes;
    for (int64_t last = g + count; BITS == 4 && g < last; g++) {
      for (int64_t i = 0; i < l.head; i += 64) prefetch(group(g) + i + PREFETCH_AHEAD);
      unpack_nibbles(group(g) + l.head, to, inputs(g));
      to += l.group / 4 * LINEAR_BLOCK;
    }
  }
  // of group g, of those from `first` on
  const uint32_t* of(int64_t g, int64_t first) const {
    if (BITS == 8) return reinterpret_cast<const uint32_t*>(group(g) + l.head);
    return bytes + (at_once ? g : g - first) * l.group / 4 * LINEAR_BLOCK;
  }
};

// out [MR][48] += dots [groups][apart rows][48] of groups [g, g + count), scaled and added as
// grouped_tile does, the sums in registers. STEPS: groups of inputs have scales of their own.
template <int BITS, bool STEPS, int MR>
static void add_groups(const QuantJob& job, const QuantRows& in, int64_t row, const char* group,
                       int64_t g, int64_t count, const float* dots, int64_t apart, float* out) {
  constexpr int NR = LINEAR_BLOCK / W;
  const QuantLayout& l = job.layout;
  const bool half = job.args->half_scales, offsets = job.args->offsets;
  const int32_t* start = in.start + row * l.groups;
  const float* sums = in.sum + row * l.groups;
  const float* scale = in.scale + row * in.scales;
  Vec total[MR][NR];
  IPX_UNROLL for (int m = 0; m < MR; m++) {
    IPX_UNROLL for (int n = 0; n < NR; n++) total[m][n] = load(out + m * LINEAR_BLOCK + n * W);
  }
  for (int64_t i = g; i < g + count; i++, group += l.stride, dots += apart * LINEAR_BLOCK) {
    Vec s[NR];
    IPX_UNROLL for (int n = 0; n < NR; n++) s[n] = scale_at(group, n * W, half);
    IPX_UNROLL for (int m = 0; m < MR; m++) {
      asm volatile("" ::: "memory");  // GCC loads all rows' dots first otherwise, and spills
      IPX_UNROLL for (int n = 0; n < NR; n++) {
        Raw dot = raw_load(dots + m * LINEAR_BLOCK + n * W);
        if (BITS == 8) dot = raw_add(dot, raw_set1(static_cast<uint32_t>(start[m * l.groups + i])));
        Vec y = to_float(dot);
        if (STEPS) y = mul(y, set1(scale[m * in.scales + i]));
        total[m][n] = fma(y, s[n], total[m][n]);
      }
    }
    if (!offsets) continue;
    IPX_UNROLL for (int n = 0; n < NR; n++) s[n] = scale_at(group + l.scales, n * W, half);
    IPX_UNROLL for (int m = 0; m < MR; m++) {
      asm volatile("" ::: "memory");
      Vec y = set1(STEPS ? sums[m * l.groups + i] * scale[m * in.scales + i]
                         : sums[m * l.groups + i]);
      IPX_UNROLL for (int n = 0; n < NR; n++) total[m][n] = fma(y, s[n], total[m][n]);
    }
  }
  IPX_UNROLL for (int m = 0; m < MR; m++) {
    IPX_UNROLL for (int n = 0; n < NR; n++) store(out + m * LINEAR_BLOCK + n * W, total[m][n]);
  }
}

template <int BITS, bool STEPS, int MR = 8>
static void add_group_rows(const QuantJob& job, const QuantRows& in, int64_t row, int64_t rows,
                           const char* group, int64_t g, int64_t count, const float* dots,
                           int64_t apart, float* out) {
  for (; rows >= MR; row += MR, rows -= MR, dots += MR * LINEAR_BLOCK, out += MR * LINEAR_BLOCK) {
    add_groups<BITS, STEPS, MR>(job, in, row, group, g, count, dots, apart, out);
  }
  if constexpr (MR > 1) {
    add_group_rows<BITS, STEPS, MR / 2>(job, in, row, rows, group, g, count, dots, apart, out);
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

// tile [rows][48] = a block's results of rows from `row` on
template <int BITS, class Multiply>
static void quant_tile_pass(const QuantJob& job, const QuantRows& in, Multiply& multiply,
                            TileWeights<BITS>& weights, int64_t row, int64_t rows, bool fetch,
                            float* dots, float* tile) {
  const QuantLayout& l = job.layout;
  memset(tile, 0, rows * LINEAR_BLOCK * 4);
  for (int64_t g = 0; g < l.groups; g += GROUPS) {
    int64_t count = min64(GROUPS, l.groups - g);
    if (!weights.at_once) weights.unpack(g, count);
    for (int64_t i = 0; i < count; i++) {
      auto* x = reinterpret_cast<const uint32_t*>(in.bytes + row * in.ldb + (g + i) * l.group);
      multiply(rows, x, in.ldb / 4, weights.of(g + i, g), weights.inputs(g + i) / 4,
               dots + i * rows * LINEAR_BLOCK, fetch);
    }
    if (l.groups == 1) {
      to_signed(job, in, row, rows, BITS == 4, dots);
      add_group(job, in, row, rows, weights.block, 0, dots, tile);
    } else {
      auto add = in.scale_step ? add_group_rows<BITS, true> : add_group_rows<BITS, false>;
      add(job, in, row, rows, weights.group(g), g, count, dots, rows, tile);
    }
  }
  if (l.groups > 1) scale_rows(in, row, rows, tile);
}

template <typename T, int BITS>
static void quant_tile_body(void* context, int64_t item) {
  auto& job = *static_cast<QuantJob*>(context);
  const QuantLinearArgs& p = *job.args;
  using Multiply = TileProducts<ChosenTiles, tile_lanes(BITS)>;
  const QuantRows* in = rows_of<T>(job);
  TileWeights<BITS> weights{job.layout, p.rows > Multiply::ROWS, nullptr};
  if (BITS == 4) weights.bytes = static_cast<uint32_t*>(scratch(3, weights.room()));
  float* gates;
  if (!in || (BITS == 4 && !weights.bytes) || !gate_buffer(p, gates)) {
    __atomic_store_n(&job.failed, 1, __ATOMIC_RELAXED);
    return;
  }
  Multiply multiply(p.rows, job.layout.group / 4);
  alignas(64) float dots[GROUPS * Multiply::ROWS * LINEAR_BLOCK];
  alignas(64) float tile[Multiply::ROWS * LINEAR_BLOCK];
  int64_t last = min64((item + 1) * job.blocks_per_item, packed_blocks(p));
  for (int64_t b = item * job.blocks_per_item; b < last; b++) {
    weights.begin(static_cast<const char*>(p.packed) + b * job.layout.block);
    for (int64_t row = 0; row < p.rows; row += Multiply::ROWS) {
      int64_t first = multiply.first(row), rows = min64(Multiply::ROWS, p.rows - first);
      quant_tile_pass(job, *in, multiply, weights, first, rows, BITS == 8 && row == 0, dots, tile);
      finish_tile<T>(p, tile, first, rows, b, gates);
    }
  }
}

// int8 with a scale per column: sums [rows][48] of integers -> floats, as to_signed and add_group
static void scale_panel(const QuantJob& job, int64_t row, int64_t rows, const char* block,
                        float* sums) {
  const QuantLayout& l = job.layout;
  const QuantRows& in = job.rows;
  const bool half = job.args->half_scales, offsets = job.args->offsets;
  for (int64_t n = 0; n < LINEAR_BLOCK; n += W) {
    Vec s = scale_at(block, n, half), o = offsets ? scale_at(block + l.scales, n, half) : zero();
    float* at = sums + n;
    for (int64_t r = row; r < row + rows; r++, at += LINEAR_BLOCK) {
      Raw start = raw_set1(static_cast<uint32_t>(in.start[r]));
      Vec y = mul(to_float(raw_add(raw_load(at), start)), s);
      if (offsets) y = fma(set1(in.sum[r]), o, y);
      store(at, fma(y, set1(in.scale[r * in.scales]), zero()));
    }
  }
}

struct QuantPanelJob : PanelJob {
  const QuantJob* quant;
};

template <typename T>
static void quant_panels_body(void* context, int64_t item) {
  auto& job = *static_cast<const QuantPanelJob*>(context);
  const QuantJob& quant = *job.quant;
  multiply_panels<TileProducts<ChosenTiles, TileLanes::Bytes>>(
      job, item, [&](int64_t row, int64_t rows, int64_t b, auto& sums) {
        auto* block = static_cast<const char*>(quant.args->packed) + b * quant.layout.block;
        scale_panel(quant, row, rows, block, sums[b % 2]);
        finish_panel<T>(*quant.args, row, rows, b, sums);
      });
}

// Weights with one scale per column, whose integers are summed over all inputs
static bool suits_panels(const QuantJob& job) {
  return job.args->weight == WEIGHT_INT8 && job.layout.groups == 1 && job.rows.bytes &&
         job.args->rows >= PANELS_FROM_ROWS && job.layout.depth >= 4 * TILE;
}

template <typename T>
static int quant_panels(const QuantJob& quant) {
  const QuantLinearArgs& p = *quant.args;
  const QuantLayout& l = quant.layout;
  QuantPanelJob job;
  job.x = pack_panels(quant.rows.bytes, p.rows, quant.rows.ldb, l.depth);
  if (!job.x.lanes) return 12;  // ENOMEM
  job.weights = static_cast<const char*>(p.packed) + l.head;
  job.depth = l.depth / 4, job.block = l.block, job.quant = &quant;
  job.items = PanelItems::of(p.rows, 64 * job.x.steps, packed_blocks(p), l.block, p.glu ? 2 : 1);
  run_parallel(quant_panels_body<T>, &job, job.items.count());
  return 0;
}
#endif

}  // namespace IPX_ISA
}  // namespace ipx
