// Linear layer with packed weights: y[M, N] = x[M, K] W[N, K]^T + bias.
//
// Moves    N * K weights once per pass over up to 8 rows kept in registers; at M <= 8 the limit is
//          DRAM (2 N K bytes), from M about 32 the FMA units (2 M N K operations).
// Reaches  README.md, "Measured".
//
// Technique: weights in blocks of LINEAR_BLOCK columns, [N/48][K/2][48] pairs of bf16 (or
// [N/48][K][48] floats), so that a pass reads them front to back with software prefetch; register
// tile of 8 rows x 3 vectors (AVX-512), x broadcast from memory. Same packing for every instruction
// set. Each output is one chain of multiply-adds in the order of K, whatever M and whichever rows
// share a tile, so the bits of a row never depend on the batch. Work is divided by columns.
#pragma once
#include "abi.h"
#include "elementwise.h"
#include "simd.h"
#include "tile_panels.h"
#include "tiles.h"

namespace ipx {
namespace IPX_ISA {

enum class Dot { Floats, Pairs, SplitPairs };  // SplitPairs: bf16 weights without vdpbf16ps

constexpr int PREFETCH_AHEAD = 4096;  // bytes; doubles the speed of streaming (measured)

// What a pass over a block of weights fetches meanwhile. If there is one pass, what lies a little
// ahead. If there are several, each fetches its share of the next block: memory is read all the
// time, not only during the first pass (measured: 8 rows of int4 take half the time).
struct Fetch {
  int64_t distance;      // bytes
  int passes, left;      // passes: every so many steps

  static Fetch of(int64_t pass, int64_t passes, int64_t block_bytes) {
    return {passes == 1 ? PREFETCH_AHEAD : block_bytes, static_cast<int>(passes),
            static_cast<int>(pass) + 1};
  }
  bool first_pass() const { return left == 1; }
  static Fetch none() { return {0, 1, 1 << 30}; }
  template <int LINES>
  inline __attribute__((always_inline)) void step(const char* w) {
    if (--left) return;
    left = passes;
    IPX_UNROLL for (int i = 0; i < LINES; i++) {
      if (passes == 1) prefetch(w + distance + 64 * i); else prefetch_l2(w + distance + 64 * i);
    }
  }
};

// Rows of x as the kernel reads them: raw pairs for Pairs, floats otherwise.
template <Dot MODE, int MR, int NR>
static void linear_tile(const uint32_t* x, int64_t ldx, const uint32_t* w, int64_t depth,
                        float* out, int64_t ldo, Fetch fetch) {
  Vec acc[MR][NR];
  IPX_UNROLL for (int m = 0; m < MR; m++) {
    IPX_UNROLL for (int n = 0; n < NR; n++) acc[m][n] = zero();
  }
  for (int64_t i = 0; i < depth; i++, w += LINEAR_BLOCK) {
    fetch.step<NR * W / 16>(reinterpret_cast<const char*>(w));
    Raw lanes[NR];
    IPX_UNROLL for (int n = 0; n < NR; n++) lanes[n] = raw_load(w + n * W);
    if constexpr (MODE == Dot::SplitPairs) {
      IPX_UNROLL for (int m = 0; m < MR; m++) {
        Vec even = as_vec(raw_set1(x[m * ldx + 2 * i]));
        Vec odd = as_vec(raw_set1(x[m * ldx + 2 * i + 1]));
        IPX_UNROLL for (int n = 0; n < NR; n++) {
          acc[m][n] = fma(high_half(lanes[n]), odd, fma(low_half(lanes[n]), even, acc[m][n]));
        }
      }
    } else {
      IPX_UNROLL for (int m = 0; m < MR; m++) {
        Raw a = raw_set1(x[m * ldx + i]);
        IPX_UNROLL for (int n = 0; n < NR; n++) {
          acc[m][n] = MODE == Dot::Pairs ? dot_pairs(acc[m][n], lanes[n], a)
                                         : fma(as_vec(lanes[n]), as_vec(a), acc[m][n]);
        }
      }
    }
  }
  IPX_UNROLL for (int m = 0; m < MR; m++) {
    IPX_UNROLL for (int n = 0; n < NR; n++) store(out + m * ldo + n * W, acc[m][n]);
  }
}

constexpr int LINEAR_ROWS = W == 16 ? 8 : 4;
constexpr int LINEAR_VECS = W == 16 ? 3 : 2;

template <Dot MODE>
static void linear_rows(int64_t rows, const uint32_t* x, int64_t ldx, const uint32_t* w,
                        int64_t depth, float* out, Fetch fetch) {
  constexpr int64_t ldo = LINEAR_BLOCK;
  for (int64_t n = 0; n < LINEAR_BLOCK; n += LINEAR_VECS * W) {
    const uint32_t* b = w + n;
    float* y = out + n;
    switch (rows) {
      case 1: linear_tile<MODE, 1, LINEAR_VECS>(x, ldx, b, depth, y, ldo, fetch); break;
      case 2: linear_tile<MODE, 2, LINEAR_VECS>(x, ldx, b, depth, y, ldo, fetch); break;
      case 3: linear_tile<MODE, 3, LINEAR_VECS>(x, ldx, b, depth, y, ldo, fetch); break;
#if defined(__AVX512F__)
      case 4: linear_tile<MODE, 4, LINEAR_VECS>(x, ldx, b, depth, y, ldo, fetch); break;
      case 5: linear_tile<MODE, 5, LINEAR_VECS>(x, ldx, b, depth, y, ldo, fetch); break;
      case 6: linear_tile<MODE, 6, LINEAR_VECS>(x, ldx, b, depth, y, ldo, fetch); break;
      case 7: linear_tile<MODE, 7, LINEAR_VECS>(x, ldx, b, depth, y, ldo, fetch); break;
#endif
      default: linear_tile<MODE, LINEAR_ROWS, LINEAR_VECS>(x, ldx, b, depth, y, ldo, fetch);
    }
  }
}

// How passes of a job's rows meet a block of weights: in vectors or, where there are any, tiles.
template <Dot MODE>
struct Products {
  static constexpr int64_t ROWS = LINEAR_ROWS;

  Products(int64_t /*rows*/, int64_t /*depth*/) {}
  int64_t first(int64_t row) const { return row; }
  void operator()(int64_t rows, const uint32_t* x, int64_t ldx, const uint32_t* w, int64_t depth,
                  float* out, Fetch fetch) {
    linear_rows<MODE>(rows, x, ldx, w, depth, out, fetch);
  }
};
#if defined(IPX_TILES)
template <>
struct Products<Dot::Pairs> : TileProducts<ChosenTiles, TileLanes::Pairs> {
  using TileProducts::TileProducts;
  void operator()(int64_t rows, const uint32_t* x, int64_t ldx, const uint32_t* w, int64_t depth,
                  float* out, Fetch fetch) {
    TileProducts::operator()(rows, x, ldx, w, depth, out, fetch.first_pass());
  }
};
#endif

struct LinearJob {
  const LinearArgs* args;
  const uint32_t* x;          // rows as the kernel reads them
  int64_t ldx, depth;         // in 32-bit lanes
  int64_t blocks_per_item;
  int failed;                 // a thread had no memory
};

// bias, softcap and rounding of a tile of results; Args: LinearArgs or QuantLinearArgs
template <typename T, typename Out, typename Args>
IPX_INLINE void finish_rows(const Args& p, const float* tile, int64_t row, int64_t rows,
                            int64_t column) {
  const T* bias = static_cast<const T*>(p.bias);
  Vec to_cap = set1(p.softcap ? static_cast<float>(1.0 / p.softcap) : 0.0f);
  Vec cap = set1(static_cast<float>(p.softcap));
  int64_t width = min64(LINEAR_BLOCK, p.outputs - column);
  for (int64_t r = 0; r < rows; r++) {
    Out* out = static_cast<Out*>(p.out) + (row + r) * p.outputs + column;
    for (int64_t c = 0; c < width; c += W) {
      Vec y = load(tile + r * LINEAR_BLOCK + c);
      if (bias) y = add(y, load_n(bias + column + c, width - c));
      if (p.softcap) y = mul(cap, tanh_vec(mul(y, to_cap)));
      store_n(out + c, y, width - c);
    }
  }
}

// act(gate) * up, each rounded as the kernels of its parts round it
template <typename T, typename Args>
static void finish_gated(const Args& p, const float* gate, const float* up, int64_t row,
                         int64_t rows, int64_t column) {
  int64_t width = min64(LINEAR_BLOCK, p.outputs - column);
  for (int64_t r = 0; r < rows; r++) {
    T* out = static_cast<T*>(p.out) + (row + r) * p.outputs + column;
    for (int64_t c = 0; c < width; c += W) {
      Vec x = rounded<T>(load(gate + r * LINEAR_BLOCK + c));
      Vec a = rounded<T>(p.glu == GLU_GELU ? gelu_tanh(x) : silu(x));
      store_n(out + c, mul(a, rounded<T>(load(up + r * LINEAR_BLOCK + c))), width - c);
    }
  }
}

template <typename Args>
IPX_INLINE int64_t packed_blocks(const Args& p) {
  return ceil_div(p.outputs, LINEAR_BLOCK) * (p.glu ? 2 : 1);
}

// What an item needs to keep the gates of its running block, all rows; false without memory
template <typename Args>
IPX_INLINE bool gate_buffer(const Args& p, float*& gates) {
  gates = nullptr;
  if (!p.glu) return true;
  gates = static_cast<float*>(scratch(4, p.rows * LINEAR_BLOCK * 4));
  return gates;
}

// A tile of results of packed block b
template <typename T, typename Args>
IPX_INLINE void finish_tile(const Args& p, const float* tile, int64_t row, int64_t rows, int64_t b,
                            float* gates) {
  int64_t column = b * LINEAR_BLOCK;
  if (p.glu) {
    gates += row * LINEAR_BLOCK;
    if (b % 2 == 0) {
      memcpy(gates, tile, rows * LINEAR_BLOCK * 4);
    } else {
      finish_gated<T>(p, gates, tile, row, rows, b / 2 * LINEAR_BLOCK);
    }
    return;
  }
  if (p.out_f32 || sizeof(T) == 4) {
    finish_rows<T, float>(p, tile, row, rows, column);
  } else {
    finish_rows<T, T>(p, tile, row, rows, column);
  }
}

// Makes the lines of a tile's results this core's before they are written: another core read what
// was in them before.
template <typename T, typename Args>
IPX_INLINE void fetch_outputs(const Args& p, int64_t row, int64_t rows, int64_t b) {
  if (p.glu && b % 2 == 0) return;  // gates, which stay here
  int64_t column = (p.glu ? b / 2 : b) * LINEAR_BLOCK;
  int64_t size = p.out_f32 ? 4 : sizeof(T), bytes = size * min64(LINEAR_BLOCK, p.outputs - column);
  for (int64_t r = row; r < row + rows; r++) {
    const char* out = static_cast<const char*>(p.out) + (r * p.outputs + column) * size;
    for (int64_t i = 0; i < bytes; i += 64) prefetch_for_write(out + i);
  }
}

template <typename T, Dot MODE>
static void linear_body(void* context, int64_t item) {
  auto& job = *static_cast<LinearJob*>(context);
  const LinearArgs& p = *job.args;
  constexpr int64_t ROWS = Products<MODE>::ROWS;
  Products<MODE> multiply(p.rows, job.depth);
  alignas(64) float tile[ROWS * LINEAR_BLOCK];
  float* gates;
  if (!gate_buffer(p, gates)) {
    __atomic_store_n(&job.failed, 1, __ATOMIC_RELAXED);
    return;
  }
  int64_t blocks = packed_blocks(p);
  const uint32_t* packed = static_cast<const uint32_t*>(p.packed);
  int64_t last = min64((item + 1) * job.blocks_per_item, blocks);
  int64_t passes = ceil_div(p.rows, ROWS);
  for (int64_t b = item * job.blocks_per_item; b < last; b++) {
    for (int64_t row = 0; row < p.rows; row += ROWS) {
      int64_t first = multiply.first(row), rows = min64(ROWS, p.rows - first);
      fetch_outputs<T>(p, first, rows, b);
      multiply(rows, job.x + first * job.ldx, job.ldx, packed + b * job.depth * LINEAR_BLOCK,
               job.depth, tile, Fetch::of(row / ROWS, passes, job.depth * LINEAR_BLOCK * 4));
      finish_tile<T>(p, tile, first, rows, b, gates);
    }
  }
}

#if defined(IPX_TILES)
// The results of a panel from its sums, of which those of gates wait for those of ups
template <typename T, typename Args>
IPX_INLINE void finish_panel(const Args& p, int64_t row, int64_t rows, int64_t b,
                             const float (&sums)[2][PANEL * LINEAR_BLOCK]) {
  if (!p.glu) return finish_tile<T>(p, sums[b % 2], row, rows, b, nullptr);
  if (b % 2) finish_gated<T>(p, sums[0], sums[1], row, rows, b / 2 * LINEAR_BLOCK);
}

struct LinearPanelJob : PanelJob {
  const LinearArgs* args;
};

static void linear_panels_body(void* context, int64_t item) {
  auto& job = *static_cast<const LinearPanelJob*>(context);
  const LinearArgs& p = *job.args;
  multiply_panels<Products<Dot::Pairs>>(
      job, item, [&](int64_t row, int64_t rows, int64_t b, auto& sums) {
        finish_panel<bf16>(p, row, rows, b, sums);
      });
}

static int linear_panels(const LinearArgs& p) {
  int64_t depth = ceil_div(p.inputs, 2), block = 4 * depth * LINEAR_BLOCK;
  LinearPanelJob job;
  job.x = pack_panels(p.x, p.rows, 2 * p.x_stride, 2 * p.inputs);
  if (!job.x.lanes) return 12;  // ENOMEM
  job.weights = static_cast<const char*>(p.packed);
  job.depth = depth, job.block = block, job.args = &p;
  job.items = PanelItems::of(p.rows, 64 * job.x.steps, packed_blocks(p), block, p.glu ? 2 : 1);
  run_parallel(linear_panels_body, &job, job.items.count());
  return 0;
}
#endif

template <typename T, Dot MODE>
static int run_linear(const LinearArgs& p) {
  constexpr bool FLOATS = MODE == Dot::Floats;
  LinearJob job{&p, static_cast<const uint32_t*>(p.x), 0, 0, 1, 0};
  job.depth = FLOATS ? p.inputs : ceil_div(p.inputs, 2);
  bool direct = FLOATS || (MODE == Dot::Pairs && p.inputs % 2 == 0 && p.x_stride % 2 == 0);
  if (direct) {
    job.ldx = FLOATS ? p.x_stride : p.x_stride / 2;
  } else {  // floats for SplitPairs; rows padded to whole pairs for Pairs
    job.ldx = MODE == Dot::Pairs ? job.depth : 2 * job.depth;
    auto* rows = static_cast<uint32_t*>(scratch(2, 4 * p.rows * job.ldx));
    if (!rows) return 12;  // ENOMEM
    for (int64_t r = 0; r < p.rows; r++) {
      const T* from = static_cast<const T*>(p.x) + r * p.x_stride;
      uint32_t* to = rows + r * job.ldx;
      to[job.ldx - 1] = 0;
      if constexpr (MODE == Dot::Pairs) {
        memcpy(to, from, p.inputs * sizeof(T));
      } else {
        for (int64_t c = 0; c < p.inputs; c += W) {
          store_n(reinterpret_cast<float*>(to) + c, load_n(from + c, p.inputs - c), p.inputs - c);
        }
      }
    }
    job.x = rows;
  }
  // an item is at least 32 KiB of weights, and there are enough of them to balance
  int64_t blocks = packed_blocks(p), block_bytes = job.depth * LINEAR_BLOCK * 4;
  job.blocks_per_item = max64(ceil_div(32768, block_bytes), ceil_div(blocks, 4096));
  if (p.glu) job.blocks_per_item = round_up(job.blocks_per_item, 2);
  run_parallel(linear_body<T, MODE>, &job, ceil_div(blocks, job.blocks_per_item));
  return job.failed ? 12 : 0;  // ENOMEM
}

static int linear(const void* args) {
  const auto& p = *static_cast<const LinearArgs*>(args);
  if (p.f32) return run_linear<float, Dot::Floats>(p);
#if defined(IPX_TILES)
  if (p.rows >= PANELS_FROM_ROWS && p.inputs >= 2 * TILE) return linear_panels(p);
#endif
  return run_linear<bf16, DOT_PAIRS ? Dot::Pairs : Dot::SplitPairs>(p);
}

// Packs weights once; columns and inputs beyond the matrix are zero.
template <typename T>
static void pack_block(const PackArgs& p, int64_t block) {
  int64_t group = sizeof(T) == 4 ? 1 : 2, depth = ceil_div(p.inputs, group);
  T* to = static_cast<T*>(p.packed) + block * depth * group * LINEAR_BLOCK;
  memset(to, 0, depth * group * LINEAR_BLOCK * sizeof(T));
  for (int64_t n = 0; n < min64(LINEAR_BLOCK, p.outputs - block * LINEAR_BLOCK); n++) {
    const T* from = static_cast<const T*>(p.weight) + (block * LINEAR_BLOCK + n) * p.weight_stride;
    for (int64_t k = 0; k < p.inputs; k++) {
      to[(k / group * LINEAR_BLOCK + n) * group + k % group] = from[k];
    }
  }
}

static void pack_body(void* context, int64_t block) {
  const auto& p = *static_cast<const PackArgs*>(context);
  p.f32 ? pack_block<float>(p, block) : pack_block<bf16>(p, block);
}

static int pack(const void* args) {
  auto* p = static_cast<const PackArgs*>(args);
  run_parallel(pack_body, const_cast<PackArgs*>(p), ceil_div(p->outputs, LINEAR_BLOCK));
  return 0;
}

}  // namespace IPX_ISA
}  // namespace ipx
