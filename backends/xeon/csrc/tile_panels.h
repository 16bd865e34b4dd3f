// Many rows on matrix tiles: how a product of them is blocked for the caches.
//
// tiles.h multiplies 32 rows with 48 columns at a time. A processor with AMX reads 48 bytes a cycle
// from its second-level cache, and a step of six products, 96 cycles, takes 5 KiB of operands: one
// of the two must come from the first-level cache (measured, SmolLM2's shapes: 1.7 TFLOP/s a core
// with both in the second, 2.2 with the weights in the first, 2.4 with all there). So:
//
//   chunk     of at most STEPS steps of weights, 18 KiB, which stays in the first-level cache while
//   panel     PANEL rows meet it, their sums waiting in memory between the chunks;
//   group     blocks of columns that a panel meets one after the other, so that lines of results
//             are complete before they leave the second-level cache;
//   item      a group and as many rows as fit in the second-level cache beside it.
//
// Rows are laid out as the tiles read them, once for all: rows that lie a power of two apart would
// share few sets of the caches. Sums are made in the order of tiles.h and kept as they are between
// chunks, so a row's bits are those that it has among few rows.
//
// Moves    the weights once for each ROWS_BYTES of rows, the rows once for each group.
// Limit    16 cycles a product of 16 x 16 x 32 (bf16) or 16 x 16 x 64 (int8).
#pragma once
#include "abi.h"
#include "simd.h"
#include "tiles.h"

namespace ipx {
namespace IPX_ISA {

#if defined(IPX_TILES)
constexpr int64_t PANEL = 64, PANELS_FROM_ROWS = 64, STEPS = 6;
constexpr int64_t ROWS_BYTES = 768 << 10, GROUP_BYTES = 128 << 10;  // of 2 MiB
constexpr int64_t PAIR_LANES = 2 * TILE * TILE;                   // of a step of two tiles of rows

// Rows as panels read them: [ceil(M / 32)][steps][32][16] lanes.
struct PanelRows {
  const uint32_t* lanes;
  int64_t steps;

  static int64_t lanes_of(int64_t rows, int64_t steps) {
    return ceil_div(rows, 2 * TILE) * steps * PAIR_LANES;
  }
  const uint32_t* at(int64_t row) const { return lanes + row / (2 * TILE) * steps * PAIR_LANES; }
};

// Which rows and blocks of columns an item has. Items of the same rows follow each other, so that
// each thread has rows of its own if there is more than one set of them.
struct PanelItems {
  int64_t all_rows, all_blocks, rows, blocks;  // rows and blocks of an item

  // together: blocks that must not be divided
  static PanelItems of(int64_t rows, int64_t row_bytes, int64_t blocks, int64_t block_bytes,
                       int64_t together) {
    PanelItems items{rows, blocks, 0, 0};
    int64_t enough = 4 * thread_count();
    items.rows = max64(1, ROWS_BYTES / row_bytes / PANEL) * PANEL;
    int64_t most = max64(1, GROUP_BYTES / block_bytes / together) * together;
    int64_t sets = ceil_div(rows, items.rows);
    int64_t least = max64(together, min64(2, most));
    items.blocks = blocks * sets / enough / together * together;
    items.blocks = max64(least, min64(most, items.blocks));
    sets = max64(sets, ceil_div(enough, ceil_div(blocks, items.blocks)));
    items.rows = round_up(ceil_div(rows, sets), PANEL);
    while (items.count() > 0xffff) items.rows *= 2;  // more are not divided over threads
    return items;
  }
  int64_t groups() const { return ceil_div(all_blocks, blocks); }
  int64_t count() const { return ceil_div(all_rows, rows) * groups(); }
  int64_t first_row(int64_t item) const { return item / groups() * rows; }
  int64_t last_row(int64_t item) const { return min64(all_rows, first_row(item) + rows); }
  int64_t first_block(int64_t item) const { return item % groups() * blocks; }
  int64_t last_block(int64_t item) const { return min64(all_blocks, first_block(item) + blocks); }
  // the block to fetch while b is multiplied: of the next group or, if each is read once, the next
  int64_t after(int64_t b) const {
    int64_t next = b + (rows > PANEL ? blocks : 1);
    return next < all_blocks ? next : b % blocks;
  }
};

struct PanelPackJob {
  const char* x;          // [M] rows `stride` bytes apart, of `bytes` each
  int64_t rows, stride, bytes;
  PanelRows to;
};

static void pack_panel(void* context, int64_t pair) {
  const auto& job = *static_cast<const PanelPackJob*>(context);
  const int64_t first = 2 * TILE * pair, whole = job.bytes / 64, apart = 4 * PAIR_LANES;
  auto* to = reinterpret_cast<char*>(const_cast<uint32_t*>(job.to.at(first)));
  const char* from = job.x + first * job.stride;
  for (int64_t r = 0; r < min64(2 * TILE, job.rows - first); r++, from += job.stride, to += 64) {
    for (int64_t s = 0; s < whole; s++) raw_store(to + s * apart, raw_load(from + s * 64));
    if (whole == job.to.steps) continue;
    raw_store(to + whole * apart, raw_zero());
    memcpy(to + whole * apart, from + whole * 64, job.bytes % 64);
  }
}

// M rows of `bytes` each, in scratch memory of the caller; without lanes if there is none
static PanelRows pack_panels(const void* x, int64_t rows, int64_t stride, int64_t bytes) {
  PanelRows to{nullptr, ceil_div(bytes, 64)};
  to.lanes = static_cast<uint32_t*>(scratch(5, 4 * PanelRows::lanes_of(rows, to.steps)));
  PanelPackJob job{static_cast<const char*>(x), rows, stride, bytes, to};
  if (to.lanes) run_parallel(pack_panel, &job, ceil_div(rows, 2 * TILE));
  return to;
}

// sums [PANEL][48] of rows from `row` on with a block of weights of `depth` lanes; meanwhile
// fetches `share` bytes from `ahead` on
template <class Multiply>
static void multiply_panel(Multiply& multiply, const PanelRows& x, int64_t row, int64_t rows,
                           const uint32_t* w, int64_t depth, float* sums, const char* ahead,
                           int64_t share) {
  alignas(64) uint32_t last[TILE * LINEAR_BLOCK];  // weights of a step that is not whole
  const int64_t whole = depth / TILE, most = ceil_div(x.steps, ceil_div(x.steps, STEPS));
  const int64_t lines = ceil_div(share, 64 * x.steps * ceil_div(rows, 2 * TILE));
  if (whole < x.steps) {
    memset(last, 0, sizeof last);
    memcpy(last, w + whole * TILE * LINEAR_BLOCK, depth % TILE * LINEAR_BLOCK * 4);
  }
  for (int64_t s = 0; s < x.steps; s += most) {
    int64_t steps = min64(most, whole - s);
    for (int64_t r = 0; r < rows; r += 2 * TILE) {
      const uint32_t* some = x.at(row + r) + s * PAIR_LANES;
      float* to = sums + r * LINEAR_BLOCK;
      multiply.chunk(some, w + s * TILE * LINEAR_BLOCK, steps, s == 0, to, ahead, lines);
      ahead += 64 * lines * steps;
      if (s + steps < min64(s + most, x.steps)) {
        multiply.chunk(some + steps * PAIR_LANES, last, 1, s + steps == 0, to, ahead, 0);
      }
    }
  }
}

// What all threads know of a product by panels; a body makes its results of a panel's sums.
struct PanelJob {
  PanelRows x;
  PanelItems items;
  const char* weights;        // of the first block
  int64_t depth, block;       // lanes of a block's weights; bytes from block to block
};

// Calls finish(row, rows, block, sums [rows][48]) for each panel and block of an item.
template <class Multiply, class Finish>
static void multiply_panels(const PanelJob& job, int64_t item, const Finish& finish) {
  alignas(64) float sums[2][PANEL * LINEAR_BLOCK];  // gates and ups come in turns
  const PanelItems& items = job.items;
  Multiply multiply(items.all_rows, job.depth);
  const int64_t first = items.first_row(item), end = items.last_row(item);
  const int64_t share = ceil_div(4 * job.depth * LINEAR_BLOCK, ceil_div(items.rows, PANEL));
  for (int64_t row = first; row < end; row += PANEL) {
    int64_t rows = min64(PANEL, end - row), fetched = (row - first) / PANEL * share;
    for (int64_t b = items.first_block(item); b < items.last_block(item); b++) {
      const char* ahead = job.weights + items.after(b) * job.block + fetched;
      auto* w = reinterpret_cast<const uint32_t*>(job.weights + b * job.block);
      multiply_panel(multiply, job.x, row, rows, w, job.depth, sums[b % 2], ahead, share);
      finish(row, rows, b, sums);
    }
  }
}
#endif

}  // namespace IPX_ISA
}  // namespace ipx
