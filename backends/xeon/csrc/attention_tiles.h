// Attention's products on matrix tiles (tiles.h), for bfloat16 pages.
//
// Scores are made as [tokens, rows]: keys lie in their pages as a tile wants them, 16 tokens of 32
// dimensions each, and need no transposition; only the queries do, once per item, and the scores,
// 16 tokens at a time. Values are paired as without tiles (pack_value_pairs). Sums run over 32
// dimensions a step, and over 32 tokens counted from the start of a block, whatever the rows that
// share a tile; masked tokens add exact zeros. So rows never depend on the batch here, either.
//
// Limit    16 cycles a product of 16 x 16 x 32; decode: DRAM.
#pragma once
#include <type_traits>

#include "abi.h"
#include "simd.h"
#include "tiles.h"

namespace ipx {
namespace IPX_ISA {

struct NoTiles {
  NoTiles(int64_t /*rows*/, int64_t /*depth*/) {}
};

#if defined(IPX_TILES)
constexpr int64_t STEP_TOKENS = 2 * TILE;  // that a step over the weights takes

// The tiles of one item. Registers: 0 scores, 1 queries; 2 to 5 sums of values, 6 weights; 7 keys
// or values; with more than one tile of rows, 2 to 5 scores, 0 and 1 queries. With few rows a tile
// of scores has FEW columns.
struct AttentionTiles {
  static constexpr int64_t FEW = 4;
  ChosenTiles tiles;
  int64_t rows, columns, depth, steps;  // depth: lanes of a key; steps of TILE lanes

  AttentionTiles(int64_t rows_, int64_t depth_)
      : rows(rows_), columns(rows_ <= FEW ? FEW : TILE), depth(depth_),
        steps(ceil_div(depth_, TILE)) {
    TileConfig config = {};
    config.palette = 1;
    for (int t = 0; t < 8; t++) {
      config.rows[t] = static_cast<uint8_t>(t < 2 || t == 7 ? TILE : min64(rows, TILE));
      config.row_bytes[t] = static_cast<uint16_t>(t < 2 ? 4 * columns : 64);
    }
    tiles.configure(config);
  }

  // q [rows][depth] -> [ceil(rows / columns)][steps][TILE lanes][columns], zeros beyond
  void turn_queries(const uint32_t* q, uint32_t* out) const {
    for (int64_t row = 0; row < rows; row += columns) {
      for (int64_t lane = 0; lane < steps * TILE; lane += TILE, out += TILE * columns) {
        Raw r[TILE];
        for (int64_t i = 0; i < TILE; i++) {
          bool live = i < columns && row + i < rows;
          r[i] = live ? raw_load_n(q + (row + i) * depth + lane, depth - lane) : raw_zero();
        }
        transpose(r);
        alignas(64) uint32_t turned[TILE * TILE];
        for (int64_t i = 0; i < TILE; i++) raw_store(turned + i * TILE, r[i]);
        for (int64_t i = 0; i < TILE; i++) {
          memcpy(out + i * columns, turned + i * TILE, 4 * columns);
        }
      }
    }
  }

  // dots [ceil(rows / columns)][apart tokens][columns], TILE tokens of each, from their keys,
  // `bytes` from one to the next and whole steps long
  void score(const char* keys, int64_t bytes, const uint32_t* queries, float* dots,
             int64_t apart) {
    if (rows > TILE) return score_many(keys, bytes, queries, dots, apart);
    for (int64_t row = 0; row < rows; row += columns, dots += apart * columns) {
      tiles.template zero<0>();
      for (int64_t i = 0; i < steps; i++, queries += TILE * columns) {
        tiles.template load<7>(keys + 64 * i, bytes);
        tiles.template load<1>(queries, 4 * columns);
        tiles.template dot_pairs<0, 7, 1>();
      }
      tiles.template store<0>(dots, 4 * columns);
    }
  }

  // The same dots -> scores [rows][stride], `tokens` of each, a multiple of TILE
  void turn_scores(const float* dots, int64_t apart, int64_t tokens, float* scores,
                   int64_t stride) const {
    for (int64_t row = 0; row < rows; row += columns, dots += apart * columns) {
      for (int64_t t = 0; t < tokens; t += TILE) {
        turn(dots + t * columns, scores + row * stride + t, min64(columns, rows - row), stride);
      }
    }
  }

  // out [rows][width] (+)= weights [rows][stride] * values [pairs][width], a multiple of TILE
  // pairs. Rows up to the next whole tile are written, too.
  void weigh(const uint32_t* weights, int64_t stride, const uint32_t* values, int64_t pairs,
             int64_t width, float* out, bool accumulate) {
    for (int64_t row = 0; row < rows; row += TILE) {
      for (int64_t n = 0; n < width; n += 4 * TILE) {
        const uint32_t* some = weights + row * stride;
        float* to = out + row * width + n;
        switch (min64(width - n, 4 * TILE) / TILE) {
          case 1: weigh_part<1>(some, stride, values + n, pairs, width, to, accumulate); break;
          case 2: weigh_part<2>(some, stride, values + n, pairs, width, to, accumulate); break;
          case 3: weigh_part<3>(some, stride, values + n, pairs, width, to, accumulate); break;
          default: weigh_part<4>(some, stride, values + n, pairs, width, to, accumulate);
        }
      }
    }
  }

 private:
  // Several tiles of rows, with the sums where those of values come later: keys are loaded once.
  void score_many(const char* keys, int64_t bytes, const uint32_t* queries, float* dots,
                  int64_t apart) {
    switch (ceil_div(rows, TILE)) {
      case 2: score_parts<2>(keys, bytes, queries, dots, apart); break;
      case 3: score_parts<3>(keys, bytes, queries, dots, apart); break;
      default: score_parts<4>(keys, bytes, queries, dots, apart);
    }
  }

  template <int PARTS>
  void score_parts(const char* keys, int64_t bytes, const uint32_t* queries, float* dots,
                   int64_t apart) {
    const int64_t part = steps * TILE * TILE;  // lanes of a tile of rows
    tiles.template zero<2>(), tiles.template zero<3>();
    if (PARTS > 2) tiles.template zero<4>();
    if (PARTS > 3) tiles.template zero<5>();
    for (int64_t i = 0; i < steps; i++, queries += TILE * TILE) {
      tiles.template load<7>(keys + 64 * i, bytes);
      tiles.template load<0>(queries, 4 * TILE);
      tiles.template dot_pairs<2, 7, 0>();
      tiles.template load<1>(queries + part, 4 * TILE);
      tiles.template dot_pairs<3, 7, 1>();
      if (PARTS > 2) {
        tiles.template load<0>(queries + 2 * part, 4 * TILE);
        tiles.template dot_pairs<4, 7, 0>();
      }
      if (PARTS > 3) {
        tiles.template load<1>(queries + 3 * part, 4 * TILE);
        tiles.template dot_pairs<5, 7, 1>();
      }
    }
    tiles.template store<2>(dots, 4 * TILE);
    tiles.template store<3>(dots + apart * TILE, 4 * TILE);
    if (PARTS > 2) tiles.template store<4>(dots + 2 * apart * TILE, 4 * TILE);
    if (PARTS > 3) tiles.template store<5>(dots + 3 * apart * TILE, 4 * TILE);
  }

  template <int PARTS>  // tiles of columns
  void weigh_part(const uint32_t* weights, int64_t stride, const uint32_t* values, int64_t pairs,
                  int64_t width, float* out, bool accumulate) {
    begin<2>(out, width, accumulate);
    if (PARTS > 1) begin<3>(out + TILE, width, accumulate);
    if (PARTS > 2) begin<4>(out + 2 * TILE, width, accumulate);
    if (PARTS > 3) begin<5>(out + 3 * TILE, width, accumulate);
    for (int64_t i = 0; i < pairs; i += TILE, values += TILE * width) {
      tiles.template load<6>(weights + i, 4 * stride);
      add<2>(values, width);
      if (PARTS > 1) add<3>(values + TILE, width);
      if (PARTS > 2) add<4>(values + 2 * TILE, width);
      if (PARTS > 3) add<5>(values + 3 * TILE, width);
    }
    tiles.template store<2>(out, 4 * width);
    if (PARTS > 1) tiles.template store<3>(out + TILE, 4 * width);
    if (PARTS > 2) tiles.template store<4>(out + 2 * TILE, 4 * width);
    if (PARTS > 3) tiles.template store<5>(out + 3 * TILE, 4 * width);
  }

  template <int SUMS>
  void begin(const float* out, int64_t width, bool accumulate) {
    if (accumulate) {
      tiles.template load<SUMS>(out, 4 * width);
    } else {
      tiles.template zero<SUMS>();
    }
  }

  template <int SUMS>
  void add(const uint32_t* values, int64_t width) {
    tiles.template load<7>(values, 4 * width);
    tiles.template dot_pairs<SUMS, 6, 7>();
  }

  // dots [TILE tokens][columns] -> scores [count][stride]
  void turn(const float* dots, float* scores, int64_t count, int64_t stride) const {
    if (columns == TILE) {
      Raw r[TILE];
      IPX_UNROLL for (int i = 0; i < TILE; i++) r[i] = raw_load(dots + i * TILE);
      transpose(r);
      for (int64_t i = 0; i < count; i++) raw_store(scores + i * stride, r[i]);
    } else {
      const Raw first = raw_load(FIRST), second = raw_load(SECOND);
      Raw a = raw_load(dots), b = raw_load(dots + 16), c = raw_load(dots + 32),
          d = raw_load(dots + 48);
      // of each row, eight tokens; then all
      for (int64_t i = 0; i < count; i++) {
        Raw at = raw_set1(static_cast<uint32_t>(i));
        Raw x = pick(a, raw_add(first, at), b), y = pick(c, raw_add(first, at), d);
        raw_store(scores + i * stride, pick(x, second, y));
      }
    }
  }
  static Raw pick(Raw a, Raw index, Raw b) { return _mm512_permutex2var_epi32(a, index, b); }
  alignas(64) static constexpr uint32_t FIRST[16] = {0, 4, 8, 12, 16, 20, 24, 28};
  alignas(64) static constexpr uint32_t SECOND[16] = {0,  1,  2,  3,  4,  5,  6,  7,
                                                      16, 17, 18, 19, 20, 21, 22, 23};
};
#else
constexpr int64_t STEP_TOKENS = 2;
using AttentionTiles = NoTiles;
#endif

}  // namespace IPX_ISA
}  // namespace ipx
