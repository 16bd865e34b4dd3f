// Matrix tiles (AMX): eight registers of up to 16 rows of 64 bytes, and products of them.
//
// AmxTiles runs the instructions. EmulatedTiles does what the instruction set reference (Intel's
// SDM, volume 2: LDTILECFG, TILELOADD, TILESTORED, TDPBF16PS, TDPBSUD) says of them in plain C++,
// and traps where the processor would raise #UD. TileProducts, the kernel, is a template over the
// two, so that a processor without AMX tests its blocking, tails and arithmetic.
//
// Where both run, their bits are the same (tests/backends/xeon/test_kernels_tiles.py).
//
// Technique: weights stay as linear.h and quant_pack.h lay them out: LINEAR_BLOCK columns are three
// tiles, whose rows are LINEAR_BLOCK lanes apart. A pass has up to two tiles of rows: six sums,
// enough to hide a product's latency (52 cycles, one begun every 16), one register for rows and one
// for weights. Each weight tile is read once for both, each row tile about once per two products.
// Tiles are configured once per item: the last tile of rows ends at the last row and may repeat
// rows of the one before, whose bits are the same again. A step's lanes, and so the order of a
// row's sums, depend on the weights' shape alone: rows never depend on the batch, and dense rows
// take this path whatever their number. Lanes that fill no step are copied and padded with zeros.
//
// Limit    16 cycles a product of 16 x 16 x 32 (bf16) or 16 x 16 x 64 (int8), half of that with 8
//          rows, 15 to store a tile of any size (measured); for few rows DRAM.
#pragma once
#include "abi.h"
#include "simd.h"

namespace ipx {
namespace IPX_ISA {

constexpr int64_t TILE = 16;  // rows of a tile, and lanes (32 bits) of a row

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "what LDTILECFG reads");

#if defined(__AMX_TILE__)
// asm: the intrinsics of GCC 12 do not tell that they read and write memory
struct AmxTiles {
  ~AmxTiles() { asm volatile("tilerelease"); }
  void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
  template <int T> void zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
  template <int T> void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T> void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  // C += A B
  template <int C, int A, int B> void dot_pairs() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  template <int C, int A, int B> void dot_bytes() {  // A with sign, B without
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  template <int C, int A, int B> void dot_signed_bytes() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};
#endif

IPX_INLINE float flushed(float x) {  // subnormals become zero
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000) == 0) bits &= 0x80000000;
  memcpy(&x, &bits, 4);
  return x;
}

struct EmulatedTiles {
  TileConfig config = {};
  alignas(64) uint8_t data[8][TILE][64];

  void configure(const TileConfig& wanted) {
    config = wanted;
    memset(data, 0, sizeof data);
    for (int t = 0; t < 8; t++) {
      must(config.palette == 1 && config.start_row == 0 && config.rows[t] && config.row_bytes[t] &&
           config.rows[t] <= TILE && config.row_bytes[t] <= 64);
    }
  }
  template <int T> void zero() { memset(data[T], 0, sizeof data[T]); }
  template <int T> void load(const void* from, int64_t stride) {
    zero<T>();
    for (int r = 0; r < config.rows[T]; r++) {
      memcpy(data[T][r], static_cast<const char*>(from) + r * stride, config.row_bytes[T]);
    }
  }
  template <int T> void store(void* to, int64_t stride) {
    for (int r = 0; r < config.rows[T]; r++) {
      memcpy(static_cast<char*>(to) + r * stride, data[T][r], config.row_bytes[T]);
    }
  }
  template <int C, int A, int B> void dot_pairs() {
    must_fit(C, A, B);
    const int depth = config.row_bytes[A] / 4, columns = config.row_bytes[C] / 4;
    float a[2], b[TILE][2][TILE] = {};  // b: of each lane, all columns' first and second values
    for (int k = 0; k < depth; k++) {
      for (int n = 0; n < columns; n++) pair(data[B][k] + 4 * n, b[k][0][n], b[k][1][n]);
    }
    for (int m = 0; m < config.rows[C]; m++) {
      float even[TILE] = {}, odd[TILE] = {};
      for (int k = 0; k < depth; k++) {
        pair(data[A][m] + 4 * k, a[0], a[1]);
        for (int n = 0; n < TILE; n++) {
          even[n] = flushed(__builtin_fmaf(a[0], b[k][0][n], even[n]));
          odd[n] = flushed(__builtin_fmaf(a[1], b[k][1][n], odd[n]));
        }
      }
      auto* c = reinterpret_cast<float*>(data[C][m]);
      for (int n = 0; n < columns; n++) c[n] = flushed(flushed(c[n]) + flushed(even[n] + odd[n]));
    }
  }
  template <int C, int A, int B> void dot_bytes() { dot<C, A, B, uint8_t>(); }
  template <int C, int A, int B> void dot_signed_bytes() { dot<C, A, B, int8_t>(); }

 private:
  template <int C, int A, int B, typename Weight> void dot() {
    must_fit(C, A, B);
    for (int m = 0; m < config.rows[C]; m++) {
      auto* c = reinterpret_cast<uint32_t*>(data[C][m]);
      for (int k = 0; k < config.rows[B]; k++) {
        const auto* a = reinterpret_cast<const int8_t*>(data[A][m] + 4 * k);
        for (int n = 0; n < config.row_bytes[C] / 4; n++) {
          const auto* b = reinterpret_cast<const Weight*>(data[B][k] + 4 * n);
          int32_t dot = a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
          c[n] += static_cast<uint32_t>(dot);
        }
      }
    }
  }
  static void must(bool valid) {
    if (!valid) __builtin_trap();
  }
  void must_fit(int c, int a, int b) const {
    must(config.rows[c] == config.rows[a] && config.row_bytes[c] == config.row_bytes[b] &&
         config.row_bytes[a] == 4 * config.rows[b] && config.row_bytes[c] % 4 == 0);
  }
  static void pair(const uint8_t* from, float& first, float& second) {
    bf16 values[2];
    memcpy(values, from, 4);
    first = flushed(scalar_from(values[0]));
    second = flushed(scalar_from(values[1]));
  }
};

// Products of rows, `depth` lanes each, with a block: bf16 pairs to floats, or signed bytes with
// weights without or with sign to int32.
enum class TileLanes { Pairs, Bytes, SignedBytes };

template <class Tiles, TileLanes KIND>
struct TileProducts {
  static constexpr int64_t ROWS = 2 * TILE;  // of a pass
  static constexpr int A = 6, B = 7;         // registers; 0 to 5 are sums
  static constexpr int64_t STRIDE = 4 * LINEAR_BLOCK;

  Tiles tiles;
  int64_t all_rows, lanes;  // lanes of a step

  // rows: all of the job's. depth: of the products, if it is less than a tile
  TileProducts(int64_t rows, int64_t depth) : all_rows(rows), lanes(min64(TILE, depth)) {
    TileConfig config = {};
    config.palette = 1;
    if (rows < 1) rows = 1;  // no job at all, but tiles without rows are an error
    for (int t = 0; t < 8; t++) {
      config.rows[t] = static_cast<uint8_t>(t == B ? lanes : min64(TILE, rows));
      config.row_bytes[t] = static_cast<uint16_t>(t == A ? 4 * lanes : 64);
    }
    tiles.configure(config);
  }

  // the first row of the pass that is to finish row `row` and those after it
  int64_t first(int64_t row) const { return min64(row, max64(0, all_rows - TILE)); }

  // The sums of two tiles of rows, [32][48], which stay in memory between chunks (tile_panels.h).
  // x: [steps][32][16] lanes; w: whole steps. Fetches `lines` from `ahead` on in each step.
  void chunk(const uint32_t* x, const uint32_t* w, int64_t steps, bool begin, void* sums,
             const char* ahead, int64_t lines) {
    char* out = static_cast<char*>(sums);
    if (begin) {
      zero_sums<2>();
    } else {
      load_column<0>(out), load_column<1>(out), load_column<2>(out);
    }
    for (; steps; steps--, x += 2 * TILE * TILE, w += TILE * LINEAR_BLOCK) {
      for (int64_t i = 0; i < lines; i++, ahead += 64) prefetch_l2(ahead);
      step<2>(x, x + TILE * TILE, 4 * TILE, w);
    }
    store_column<2, 0>(out, TILE), store_column<2, 1>(out, TILE), store_column<2, 2>(out, TILE);
  }

  // x: rows ldx lanes apart; out [rows][48], int32 or float
  void operator()(int64_t rows, const uint32_t* x, int64_t ldx, const uint32_t* w, int64_t depth,
                  void* out, bool fetch) {
    if (rows > TILE) {
      pass<2>(rows, x, ldx, w, depth, static_cast<char*>(out), fetch);
    } else {
      pass<1>(rows, x, ldx, w, depth, static_cast<char*>(out), fetch);
    }
  }

 private:
  template <int MR>
  void pass(int64_t rows, const uint32_t* x, int64_t ldx, const uint32_t* w, int64_t depth,
            char* out, bool fetch) {
    const int64_t second = rows - TILE;  // where the other tile of rows begins
    zero_sums<MR>();
    int64_t i = 0;
    for (; i + lanes <= depth; i += lanes, w += lanes * LINEAR_BLOCK) {
      for (int64_t at = 0; fetch && at < lanes * STRIDE; at += 64) {
        prefetch(reinterpret_cast<const char*>(w) + at + FETCH_AHEAD);
      }
      step<MR>(x + i, x + second * ldx + i, 4 * ldx, w);
    }
    if (i < depth) {
      alignas(64) uint32_t some_x[ROWS * TILE] = {}, some_w[TILE * LINEAR_BLOCK] = {};
      for (int64_t r = 0; r < rows; r++) {
        memcpy(some_x + r * TILE, x + r * ldx + i, 4 * (depth - i));
      }
      memcpy(some_w, w, (depth - i) * STRIDE);
      step<MR>(some_x, some_x + second * TILE, 4 * TILE, some_w);
    }
    store_column<MR, 0>(out, second);
    store_column<MR, 1>(out, second);
    store_column<MR, 2>(out, second);
  }

  template <int MR>
  void zero_sums() {
    tiles.template zero<0>(), tiles.template zero<1>(), tiles.template zero<2>();
    if constexpr (MR == 2) {
      tiles.template zero<3>(), tiles.template zero<4>(), tiles.template zero<5>();
    }
  }

  template <int MR>
  void step(const uint32_t* x, const uint32_t* other, int64_t stride, const uint32_t* w) {
    tiles.template load<A>(x, stride);
    tiles.template load<B>(w, STRIDE);
    multiply<0>();
    if constexpr (MR == 1) {
      tiles.template load<B>(w + TILE, STRIDE);
      multiply<1>();
      tiles.template load<B>(w + 2 * TILE, STRIDE);
      multiply<2>();
    } else {  // to and fro, so that a column begins with the rows that the last one ended with
      tiles.template load<A>(other, stride);
      multiply<3>();
      tiles.template load<B>(w + TILE, STRIDE);
      multiply<4>();
      tiles.template load<A>(x, stride);
      multiply<1>();
      tiles.template load<B>(w + 2 * TILE, STRIDE);
      multiply<2>();
      tiles.template load<A>(other, stride);
      multiply<5>();
    }
  }

  template <int C>
  void multiply() {
    if constexpr (KIND == TileLanes::Bytes) {
      tiles.template dot_bytes<C, A, B>();
    } else if constexpr (KIND == TileLanes::SignedBytes) {
      tiles.template dot_signed_bytes<C, A, B>();
    } else {
      tiles.template dot_pairs<C, A, B>();
    }
  }

  template <int MR, int N>
  void store_column(char* out, int64_t second) {
    tiles.template store<N>(out + 4 * N * TILE, STRIDE);
    if constexpr (MR == 2) {
      tiles.template store<3 + N>(out + second * STRIDE + 4 * N * TILE, STRIDE);
    }
  }

  template <int N>
  void load_column(const char* out) {
    tiles.template load<N>(out + 4 * N * TILE, STRIDE);
    tiles.template load<3 + N>(out + TILE * STRIDE + 4 * N * TILE, STRIDE);
  }

  static constexpr int64_t FETCH_AHEAD = 4096;
};

#if defined(IPX_EMULATE_TILES)
using ChosenTiles = EmulatedTiles;
#elif defined(IPX_TILES)
using ChosenTiles = AmxTiles;
#endif

}  // namespace IPX_ISA
}  // namespace ipx
