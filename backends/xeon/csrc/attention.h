// Paged attention: prefill and decode of a mixed batch in one call.
//
// Computes  out[t, h] = sum_j softmax_j(cap(scale * q[t, h] . k[j, h / G])) v[j, h / G]  over the
// cached tokens j of t's sequence with position(t) - window < j <= position(t); `sinks` adds
// exp(sink[h]) to the denominator. q, out [T, Hq, D]; caches addressed by (page, token, head)
// strides; G = Hq / Hkv.
//
// Moves    decode: 2 * S * Hkv * D elements per sequence (keys and values once), so the limit is
//          DRAM. prefill: 4 * D operations per visible (query, key, head), limit: the FMA units.
// Reaches  README.md, "Measured".
//
// Technique: FlashAttention-2 tiles (Dao 2023) with the fixed splits of FlashDecoding. Rows are
// (query, head) pairs that share a KV head, up to ROWS in a work item. Keys and values are taken
// in blocks of BLOCK tokens counted from position 0. Each block gives (m, l, acc) of its own, and
// these are merged in the order of the blocks, whether one thread ran them one after the other or
// several ran them apart. Per row, the operations and their order depend on nothing but the row's
// own position and keys (masked lanes add exact zeros), so the bits do not depend on the batch, on
// how a prefill is cut, or on the number of threads.
//
// Within a block, keys are transposed in registers to [D, tokens] and values laid out [tokens, D],
// as 32-bit lanes: a float, a bf16 pair where vdpbf16ps exists, or four bytes of int8 pages where
// VNNI does (attention_int8.h). Both products are then one micro-kernel, C[row, lane] +=
// broadcast(A[row, i]) * B[i, lane], whose inner dimension runs in order. With matrix tiles, bf16
// keys are taken as they lie and products run on tiles (attention_tiles.h). Tokens outside the
// visible range are never read: their lanes are zero.
#pragma once
#include "abi.h"
#include "attention_int8.h"
#include "attention_tiles.h"
#include "simd.h"

namespace ipx {
namespace IPX_ISA {

constexpr int BLOCK = 256;  // tokens of a partial result
constexpr int SUB = 64;     // tokens packed at a time: fits the first-level cache with the rows
constexpr int ROWS = 64;    // rows of a work item
constexpr float NONE = -__builtin_inff();

// ---- C[MR rows][NR vectors] (+)= A[MR][depth] * B[depth][NR], 32-bit lanes ----

// What a lane of A and B holds. Of bytes, B's are without sign with keys, A's with values; C is
// of int32 then.
enum Lanes { FLOATS, PAIRS, KEY_BYTES, VALUE_BYTES };

template <Lanes KIND>
IPX_INLINE Vec multiply_add(Vec c, Raw a, Raw b) {
  if (KIND == PAIRS) return dot_pairs(c, a, b);
  if (KIND == KEY_BYTES) return as_vec(dot_bytes(as_raw(c), b, a));
  if (KIND == VALUE_BYTES) return as_vec(dot_bytes(as_raw(c), a, b));
  return fma(as_vec(a), as_vec(b), c);
}

template <Lanes KIND, int MR, int NR>
static void tile(const uint32_t* a, int64_t lda, const uint32_t* b, int64_t ldb, int64_t depth,
                 float* c, int64_t ldc, bool accumulate) {
  Vec acc[MR][NR];
  IPX_UNROLL for (int m = 0; m < MR; m++) {
    IPX_UNROLL for (int n = 0; n < NR; n++) {
      acc[m][n] = accumulate ? load(c + m * ldc + n * W) : zero();
    }
  }
  for (int64_t i = 0; i < depth; i++) {
    Raw lanes[NR];
    IPX_UNROLL for (int n = 0; n < NR; n++) lanes[n] = raw_load(b + i * ldb + n * W);
    IPX_UNROLL for (int m = 0; m < MR; m++) {
      Raw x = raw_set1(a[m * lda + i]);
      IPX_UNROLL for (int n = 0; n < NR; n++) {
        acc[m][n] = multiply_add<KIND>(acc[m][n], x, lanes[n]);
      }
    }
  }
  IPX_UNROLL for (int m = 0; m < MR; m++) {
    IPX_UNROLL for (int n = 0; n < NR; n++) store(c + m * ldc + n * W, acc[m][n]);
  }
}

constexpr int TILE_ROWS = W == 16 ? 6 : 4;
constexpr int TILE_VECS = W == 16 ? 4 : 2;

template <Lanes KIND, int NR>
static void tile_rows(int64_t rows, const uint32_t* a, int64_t lda, const uint32_t* b, int64_t ldb,
                      int64_t depth, float* c, int64_t ldc, bool accumulate) {
  for (int64_t r = 0; r < rows; r += TILE_ROWS) {
    const uint32_t* x = a + r * lda;
    float* y = c + r * ldc;
    switch (min64(rows - r, TILE_ROWS)) {
      case 1: tile<KIND, 1, NR>(x, lda, b, ldb, depth, y, ldc, accumulate); break;
      case 2: tile<KIND, 2, NR>(x, lda, b, ldb, depth, y, ldc, accumulate); break;
      case 3: tile<KIND, 3, NR>(x, lda, b, ldb, depth, y, ldc, accumulate); break;
#if defined(__AVX512F__)
      case 4: tile<KIND, 4, NR>(x, lda, b, ldb, depth, y, ldc, accumulate); break;
      case 5: tile<KIND, 5, NR>(x, lda, b, ldb, depth, y, ldc, accumulate); break;
#endif
      default: tile<KIND, TILE_ROWS, NR>(x, lda, b, ldb, depth, y, ldc, accumulate);
    }
  }
}

template <Lanes KIND>
static void product(int64_t rows, int64_t vecs, const uint32_t* a, int64_t lda, const uint32_t* b,
                    int64_t ldb, int64_t depth, float* c, int64_t ldc, bool accumulate) {
  for (int64_t n = 0; n < vecs; n += TILE_VECS) {
    const uint32_t* lanes = b + n * W;
    float* y = c + n * W;
    switch (min64(vecs - n, TILE_VECS)) {
      case 1: tile_rows<KIND, 1>(rows, a, lda, lanes, ldb, depth, y, ldc, accumulate); break;
#if defined(__AVX512F__)
      case 2: tile_rows<KIND, 2>(rows, a, lda, lanes, ldb, depth, y, ldc, accumulate); break;
      case 3: tile_rows<KIND, 3>(rows, a, lda, lanes, ldb, depth, y, ldc, accumulate); break;
#endif
      default: tile_rows<KIND, TILE_VECS>(rows, a, lda, lanes, ldb, depth, y, ldc, accumulate);
    }
  }
}

// ---- packing of SUB tokens ----

// W 32-bit lanes of a row from lane c on; `lanes` is how many the row has
template <Lanes KIND>
IPX_INLINE Raw row_lanes(const bf16* row, int64_t c, int64_t lanes) {
  if (KIND == PAIRS) return raw_load_n(row + 2 * c, lanes - c);
  return as_raw(load_n(row + c, lanes - c));
}
template <Lanes KIND>
IPX_INLINE Raw row_lanes(const float* row, int64_t c, int64_t lanes) {
  return as_raw(load_n(row + c, lanes - c));
}
template <Lanes KIND>
IPX_INLINE Raw row_lanes(const int8_t* row, int64_t c, int64_t lanes) {
  if (KIND == FLOATS) return as_raw(load_n(row + c, lanes - c));
  return raw_xor(raw_load_n(row + 4 * c, lanes - c), raw_set1(0x80808080));  // + 128
}

// Rows to be read later, fetched a few at a time while others are packed: all at once they would
// wait for each other. What comes a whole block later is fetched all the time, into the second
// cache (measured: decode takes half as long as when only the next rows are); what comes at once
// is fetched, too, where nothing was before.
template <typename T>
struct Ahead {
  struct List {
    const T* base;
    const int64_t* offset;
    int64_t count;
  };
  List soon, later;
  int64_t row_bytes;

  void fetch(int64_t first, int64_t last) const {
    each_line(soon, first, min64(last, soon.count), [](const char* p) { prefetch(p); });
    each_line(later, first, min64(last, later.count), [](const char* p) { prefetch_l2(p); });
  }
  template <typename Body>
  void each_line(const List& rows, int64_t first, int64_t last, Body body) const {
    if (first >= last) return;
    auto row = [&](int64_t i) { return reinterpret_cast<const char*>(rows.base + rows.offset[i]); };
    const char* at = row(first);
    if (row(last - 1) - at == (last - 1 - first) * row_bytes) {  // side by side
      for (const char* end = row(last - 1) + row_bytes; at < end; at += 64) body(at);
      return;
    }
    for (int64_t i = first; i < last; i++) {
      for (int64_t k = 0; k < row_bytes; k += 64) body(row(i) + k);
    }
  }
  void rest(int64_t first) const { fetch(first, max64(soon.count, later.count)); }
};

// out[lane][SUB] = keys of tokens [0, count), those outside [first, last) zero
template <typename T, Lanes KIND>
static void pack_keys(const T* keys, const int64_t* offset, int64_t first, int64_t last,
                      int64_t count, int64_t lanes, const Ahead<T>& ahead, uint32_t* out) {
  for (int64_t t = 0; t < count; t += W) {
    ahead.fetch(t, t + W);
    for (int64_t c = 0; c < lanes; c += W) {
      Raw r[W];
      IPX_UNROLL for (int i = 0; i < W; i++) {
        bool live = t + i >= first && t + i < last;
        r[i] = live ? row_lanes<KIND>(keys + offset[t + i], c, lanes) : raw_zero();
      }
      transpose(r);
      int64_t n = min64(lanes - c, W);
      if (n == W) {
        IPX_UNROLL for (int i = 0; i < W; i++) raw_store(out + (c + i) * SUB + t, r[i]);
      } else {
        for (int64_t i = 0; i < n; i++) raw_store(out + (c + i) * SUB + t, r[i]);
      }
    }
  }
  ahead.rest(round_up(count, W));
}

// out[i][width]: values of tokens [first, last) as floats
template <typename T>
static void pack_values(const T* values, const int64_t* offset, int64_t first, int64_t last,
                        int64_t count, int64_t head_dim, int64_t width, const Ahead<T>& ahead,
                        uint32_t* out) {
  for (int64_t t = 0; t < count; t++) {
    ahead.fetch(t, t + 1);
    bool live = t >= first && t < last;
    for (int64_t c = 0; c < width; c += W) {
      Vec x = live ? load_n(values + offset[t] + c, head_dim - c) : zero();
      store(reinterpret_cast<float*>(out) + t * width + c, x);
    }
  }
  ahead.rest(count);
}

// The same as pairs of tokens (2i, 2i + 1). Two vectors have 2 W dimensions, the even ones first:
// shifts and blends make that order, where the natural one takes as many moves across lanes, of
// which there is one a cycle. write_row puts them back.
static inline void pack_value_pairs(const bf16* values, const int64_t* offset, int64_t first,
                                    int64_t last, int64_t count, int64_t head_dim, int64_t width,
                                    const Ahead<bf16>& ahead, uint32_t* out) {
  for (int64_t t = 0; t < count; t += 2, out += width) {
    if (t % 8 == 0) ahead.fetch(t, t + 8);
    bool live = t >= first && t < last, other = t + 1 >= first && t + 1 < last;
    for (int64_t c = 0; c < width; c += 2 * W) {
      int64_t left = (head_dim - c) / 2;  // lanes
      Raw a = live ? raw_load_n(values + offset[t] + c, left) : raw_zero();
      Raw b = other ? raw_load_n(values + offset[t + 1] + c, left) : raw_zero();
      raw_store(out + c, low_halves(a, b));
      raw_store(out + c + W, high_halves(a, b));
    }
  }
  ahead.rest(round_up(count, 8));
}

// lanes that a row of results has while it is made
template <Lanes KIND>
IPX_INLINE int64_t result_width(int64_t head_dim) {
  return round_up(head_dim, KIND == PAIRS ? 2 * W : W);
}

// ---- one work item ----

struct Item {
  int32_t sequence, head;     // KV head
  int32_t row, rows;          // rows are query * G + head in group, counted in the sequence
  int32_t block, blocks;      // KV blocks [block, blocks)
  int64_t partial;            // where (m, l, acc) of a split item goes; -1: not split
};

struct Span {                 // of tokens of a block, counted from its start
  const int64_t* offset;      // of each token of the block, in elements
  int64_t low, high;
};

struct Shared {
  const AttentionArgs* args;
  const Item* items;
  int64_t count;
  float* partials;
  int failed;
};

IPX_INLINE int64_t partial_floats(int64_t rows, int64_t width) { return rows * (width + 2); }

// m, l: running maxima (base-2 logarithms) and denominators of `rows` rows; acc: running sums,
// [rows][width] floats. Rows of which nothing was seen yet, not even a NaN, stay as they are.
static void merge_rows(int64_t rows, float* m, float* l, float* acc, const float* block_m,
                       const float* block_l, const float* block_acc, int64_t width) {
  for (int64_t r = 0; r < rows; r += W) {
    int64_t n = min64(rows - r, W);
    alignas(64) float old_scale[W], new_scale[W], seen[W];
    Vec a = load_n(m + r, n), b = load_n(block_m + r, n), sum = load_n(l + r, n),
        block_sum = load_n(block_l + r, n);
    Vec top = maximum(a, b);  // b if either is a NaN
    Vec old = exp2_vec(sub(a, top)), fresh = exp2_vec(sub(b, top));
    store(old_scale, old), store(new_scale, fresh);
    store(seen, add(magnitude(sum), magnitude(block_sum)));
    Vec joined = fma(sum, old, mul(block_sum, fresh));
    alignas(64) float tops[W], sums[W];
    store(tops, top), store(sums, joined);
    for (int64_t i = 0; i < n; i++, acc += width, block_acc += width) {
      if (tops[i] == NONE && seen[i] == 0.0f) continue;
      m[r + i] = tops[i], l[r + i] = sums[i];
      Vec x = set1(old_scale[i]), y = set1(new_scale[i]);
      for (int64_t c = 0; c < width; c += W) {
        store(acc + c, fma(load(acc + c), x, mul(load(block_acc + c), y)));
      }
    }
  }
}

template <typename T, Lanes KIND>
IPX_INLINE void write_row(const AttentionArgs& p, int64_t token, int64_t head, float m, float l,
                          const float* acc) {
  if (p.sinks && m != NONE) l += exp2_scalar(p.sinks[head] * LOG2E - m);  // at most 2^127
  Vec inverse = set1(l == 0.0f ? 0.0f : 1.0f / l);  // a NaN stays one
  T* out = static_cast<T*>(const_cast<void*>(p.out)) + (token * p.q_heads + head) * p.head_dim;
  for (int64_t c = 0; KIND == PAIRS && c < p.head_dim; c += 2 * W) {
    alignas(64) bf16 even[W], odd[W], both[2 * W];
    store(even, mul(load(acc + c), inverse));
    store(odd, mul(load(acc + c + W), inverse));
    bool whole = c + 2 * W <= p.head_dim;
    raw_store(whole ? static_cast<void*>(out + c) : both, interleave(even, odd));
    if (!whole) memcpy(out + c, both, sizeof(T) * (p.head_dim - c));
  }
  for (int64_t c = 0; KIND != PAIRS && c < p.head_dim; c += W) {
    store_n(out + c, mul(load(acc + c), inverse), p.head_dim - c);
  }
}

// Scratch of one thread, carved out of one allocation
struct Workspace {
  uint32_t* q;        // [ROWS][lanes], bytes [2][rows][lanes]: high, then low; on tiles turned
  uint32_t* keys;     // [lanes][SUB]
  uint32_t* values;   // [SUB][width]
  float* scores;      // [ROWS][BLOCK]; then, in place, the probabilities
  float* block_acc;   // [ROWS][width]
  float* acc;         // [ROWS][width]
  float* dots;        // [ROWS][SUB]: scores turned
  int64_t* offset;    // [2][BLOCK]
  float *m, *l, *block_m, *block_l;
  // int8 pages only
  float *key_scale, *value_scale;  // [BLOCK]
  float *q_step, *p_step;          // [ROWS]
  int32_t* q_start;                // [ROWS]
  uint8_t* weights;                // [2][rows][BLOCK]
  int32_t* sums;                   // [2][rows][SUB or width]

  static int64_t bytes(int64_t lanes, int64_t width) {
    return 4 * (2 * ROWS * round_up(lanes, TILE) + lanes * SUB + SUB * width + ROWS * BLOCK +
                2 * ROWS * width + ROWS * SUB + 4 * ROWS) + 16 * BLOCK +
           4 * (2 * BLOCK + 3 * ROWS + 2 * ROWS * max64(SUB, width)) + 2 * ROWS * BLOCK;
  }
  Workspace(char* at, int64_t lanes, int64_t width) {
    auto take = [&at](int64_t n) { char* p = at; at += n; return p; };
    offset = reinterpret_cast<int64_t*>(take(16 * BLOCK));
    q = reinterpret_cast<uint32_t*>(take(8 * ROWS * round_up(lanes, TILE)));
    keys = reinterpret_cast<uint32_t*>(take(4 * lanes * SUB));
    values = reinterpret_cast<uint32_t*>(take(4 * SUB * width));
    scores = reinterpret_cast<float*>(take(4 * ROWS * BLOCK));
    block_acc = reinterpret_cast<float*>(take(4 * ROWS * width));
    acc = reinterpret_cast<float*>(take(4 * ROWS * width));
    dots = reinterpret_cast<float*>(take(4 * ROWS * SUB));
    m = reinterpret_cast<float*>(take(4 * ROWS));
    l = reinterpret_cast<float*>(take(4 * ROWS));
    block_m = reinterpret_cast<float*>(take(4 * ROWS));
    block_l = reinterpret_cast<float*>(take(4 * ROWS));
    key_scale = reinterpret_cast<float*>(take(4 * BLOCK));
    value_scale = reinterpret_cast<float*>(take(4 * BLOCK));
    q_step = reinterpret_cast<float*>(take(4 * ROWS));
    p_step = reinterpret_cast<float*>(take(4 * ROWS));
    q_start = reinterpret_cast<int32_t*>(take(4 * ROWS));
    weights = reinterpret_cast<uint8_t*>(take(2 * ROWS * BLOCK));
    sums = reinterpret_cast<int32_t*>(take(8 * ROWS * max64(SUB, width)));
  }
};

// How keys of type C are multiplied by queries
template <typename C>
constexpr Lanes key_lanes() {
  return sizeof(C) == 1 ? (DOT_BYTES ? KEY_BYTES : FLOATS)
                        : (sizeof(C) == 2 && DOT_PAIRS ? PAIRS : FLOATS);
}

template <typename T, typename C>
struct Worker {
  static constexpr bool INT8 = sizeof(C) == 1;
  static constexpr Lanes KIND = key_lanes<C>();
  using Tiles = std::conditional_t<KIND == PAIRS, AttentionTiles, NoTiles>;
  static constexpr bool TILES = !std::is_same<Tiles, NoTiles>::value;
  static constexpr int64_t STEP = TILES ? STEP_TOKENS : W;  // tokens that products go by
  const AttentionArgs& p;
  const Shared& shared;
  Workspace w;
  int64_t group;
  int64_t depth, lanes;  // lanes of a key, and from row to row of the queries
  int64_t width;
  float scale, cap, to_cap;  // of scores, to base-2 logarithms

  Worker(const Shared& s, char* memory, int64_t depth_, int64_t lanes_, int64_t width_)
      : p(*s.args), shared(s), w(memory, lanes_, width_), group(p.q_heads / p.kv_heads),
        depth(depth_), lanes(lanes_), width(width_),
        scale(static_cast<float>(p.scale * LOG2E)), cap(static_cast<float>(p.softcap * LOG2E)),
        to_cap(p.softcap ? static_cast<float>(p.scale / p.softcap) : 0.0f) {}

  int64_t first_position(const Item& item) const {
    int64_t q_len = p.q_start[item.sequence + 1] - p.q_start[item.sequence];
    return p.seq_len[item.sequence] - q_len;
  }

  void load_queries(const Item& item, Tiles& tiles) {
    const T* q = static_cast<const T*>(p.q);
    uint32_t* rows = w.q + (TILES ? ROWS * round_up(lanes, TILE) : 0);
    int8_t* bytes = reinterpret_cast<int8_t*>(w.q);
    for (int64_t r = 0; r < item.rows; r++) {
      int64_t row = item.row + r;
      const T* from = q + (p.q_start[item.sequence] + row / group) * p.q_stride +
                      (item.head * group + row % group) * p.head_dim;
      if constexpr (KIND == KEY_BYTES) {
        w.q_step[r] = quantize_query(from, p.head_dim, bytes + r * lanes * 4,
                                     bytes + (item.rows + r) * lanes * 4, w.q_start + r);
      } else if (KIND == PAIRS || sizeof(T) == 4) {
        memcpy(rows + r * lanes, from, lanes * 4);
      } else {
        for (int64_t c = 0; c < lanes; c += W) {
          store_n(reinterpret_cast<float*>(w.q + r * lanes + c), load_n(from + c, lanes - c),
                  lanes - c);
        }
      }
    }
    if constexpr (TILES) tiles.turn_queries(rows, w.q);
  }

  // element offsets of the tokens [first, last) of a block
  void find_tokens(const Item& item, int64_t block, int64_t first, int64_t last, int64_t* offset) {
    const int32_t* pages = p.page_table + item.sequence * p.table_stride;
    int64_t at = block * BLOCK + first, page = at / p.page_size, in_page = at % p.page_size;
    int64_t head = item.head * p.head_stride;
    while (first < last) {
      int64_t run = min64(last - first, p.page_size - in_page);
      int64_t base = pages[page] * p.page_stride + in_page * p.token_stride + head;
      for (int64_t i = 0; i < run; i++) offset[first + i] = base + i * p.token_stride;
      first += run;
      page++;
      in_page = 0;
    }
  }

  // Scores of W tokens -> base-2 logarithms
  Vec logarithms(Vec x, int64_t t) const {
    if (INT8) x = mul(x, load(w.key_scale + t));
    if (p.softcap) return mul(set1(cap), tanh_vec(mul(x, set1(to_cap))));
    return mul(x, set1(scale));
  }

  // scores -> probabilities of one row in place; visible tokens are [low, high) of the block,
  // computed ones [first, last), a multiple of SUB each way except at the end of the block
  void soften(int64_t r, int64_t rows, int64_t low, int64_t high, int64_t first, int64_t last) {
    float* s = w.scores + r * BLOCK;
    const bool plain = !INT8 && !p.softcap && scale > 0.0f;  // which keeps the largest largest
    const Vec none = set1(NONE);
    Vec top = none;
    for (int64_t t = first; t < last; t += W) {
      bool whole = t >= low && t + W <= high;
      if (plain && whole) {
        top = maximum(load(s + t), top);
        continue;
      }
      Vec x = load(s + t);
      if (!plain) x = logarithms(x, t);  // else they are scaled below
      if (!whole) x = keep_range(x, low - t, high - t, none);
      top = maximum(x, top);
      store(s + t, x);
    }
    const Vec factor = set1(plain ? scale : 1.0f);
    float m = largest(top) * (plain ? scale : 1.0f);
    Vec shift = set1(m == NONE ? 0.0f : -m), total = zero();
    bf16* pairs = reinterpret_cast<bf16*>(s);
    Vec weights = zero(), heaviest = zero();
    for (int64_t t = first; t < last; t += W) {
      Vec e = exp2_small(fma(load(s + t), factor, shift));
      total = add(total, e);
      if (INT8) {
        e = mul(e, load(w.value_scale + t));
        weights = add(weights, e);
        heaviest = maximum(e, heaviest);
      }
      if (KIND == PAIRS) store(pairs + t, e); else store(s + t, e);
    }
    w.block_m[r] = m;
    w.block_l[r] = sum(total);
    if constexpr (KIND == KEY_BYTES) {
      float step = quantize_weights(s, first, last, heaviest, w.weights + r * BLOCK,
                                    w.weights + (rows + r) * BLOCK);
      float all = sum(weights);
      w.p_step[r] = all - all == 0.0f ? step : __builtin_nanf("");
    }
  }

  // Products with SUB tokens at a time: scores from keys, and what values add to block_acc
  void score(const Item& item, int64_t s, int64_t n) {
    if constexpr (KIND == KEY_BYTES) {
      product<KEY_BYTES>(2 * item.rows, ceil_div(n, W), w.q, lanes, w.keys, SUB, depth,
                         reinterpret_cast<float*>(w.sums), SUB, false);
      for (int64_t r = 0; r < item.rows; r++) {
        join_bytes(w.sums + r * SUB, w.sums + (item.rows + r) * SUB, w.q_start[r], w.q_step[r],
                   round_up(n, W), w.scores + r * BLOCK + s);
      }
    } else {
      product<KIND>(item.rows, ceil_div(n, W), w.q, lanes, w.keys, SUB, depth, w.scores + s, BLOCK,
                    false);
    }
  }

  // What is fetched while keys or values (`base`) of tokens from s on are packed: rows of the same
  // block, and the same part of the next one.
  Ahead<C> ahead_of(int64_t s, bool begins, bool ends, const typename Ahead<C>::List& soon,
                    const C* base, const Span& next) const {
    int64_t from = begins ? next.low : max64(s, next.low), to = next.high;
    if (!ends) to = min64(to, s + SUB);
    return {soon, {base, next.offset + from, max64(0, to - from)},
            p.head_dim * (int64_t)sizeof(C) + (INT8 ? 4 : 0)};
  }

  // Scores of tokens [s, s + n) of the block, of which [low, high) are visible. Keys whose tokens
  // of a tile lie in one page, and whose rows fill whole steps, are read from there, those nobody
  // sees as well: each has a score of its own, which is masked. Others are copied.
  void score_on_tiles(Tiles& tiles, const C* keys, const int64_t* offset, int64_t s, int64_t n,
                      int64_t low, int64_t high, const Ahead<C>& ahead) {
    const int64_t begin = max64(s, low / TILE * TILE), bytes = 64 * ceil_div(depth, TILE);
    const bool direct = p.page_size % TILE == 0 && depth % TILE == 0;
    for (int64_t t = begin; t < s + n; t += TILE) {
      ahead.fetch(t - s, t - s + TILE);
      const char* from = reinterpret_cast<const char*>(w.keys);
      int64_t first = max64(t, low), last = min64(t + TILE, high);
      if (direct) {
        from = reinterpret_cast<const char*>(keys + offset[first] - (first - t) * p.token_stride);
      } else {
        char* to = reinterpret_cast<char*>(w.keys);
        memset(to, 0, TILE * bytes);
        for (int64_t i = first; i < last; i++) {
          memcpy(to + (i - t) * bytes, keys + offset[i], depth * 4);
        }
      }
      int64_t apart = direct ? p.token_stride * static_cast<int64_t>(sizeof(C)) : bytes;
      if constexpr (TILES) tiles.score(from, apart, w.q, w.dots + (t - begin) * tiles.columns, SUB);
    }
    if constexpr (TILES) {
      tiles.turn_scores(w.dots, SUB, round_up(s + n - begin, TILE), w.scores + begin, BLOCK);
    }
    ahead.rest(round_up(n, TILE));
  }

  // This item sees tokens [low, high) of the block. `cold`: nothing of it was fetched yet.
  void run_block(const Item& item, int64_t block, const Span& span, const Span& next, bool cold,
                 Tiles& tiles) {
    const C* keys = static_cast<const C*>(p.k);
    const int64_t* offset = span.offset;
    int64_t low = span.low, high = span.high, first = low / SUB * SUB;
    for (int64_t s = first; s < high; s += SUB) {
      int64_t n = min64(high - s, SUB);
      bool more = s + SUB < high;  // then come the next keys, else the first values
      const C* values = static_cast<const C*>(p.v);
      typename Ahead<C>::List soon{more ? keys : values, more ? offset + s + SUB : offset + low,
                                   more ? high - s - SUB : min64(high - low, SUB)};
      if (!cold) soon.count = 0;
      Ahead<C> ahead = ahead_of(s, s == first, !more, soon, keys, next);
      if constexpr (TILES) {
        score_on_tiles(tiles, keys, offset, s, n, low, high, ahead);
        continue;
      }
      pack_keys<C, KIND>(keys, offset + s, low - s, high - s, n, depth, ahead, w.keys);
      if constexpr (INT8) {
        gather_scales(keys, offset + s, low - s, high - s, n, p.head_dim, w.key_scale + s);
        gather_scales(values, offset + s, low - s, high - s, n, p.head_dim, w.value_scale + s);
      }
      score(item, s, n);
    }
    int64_t last = round_up(high, STEP), start = first_position(item);
    for (int64_t r = 0; r < item.rows; r++) {
      int64_t position = start + (item.row + r) / group - block * BLOCK;
      int64_t lowest = p.window ? position - p.window + 1 : 0;
      soften(r, item.rows, max64(lowest, low), min64(position + 1, high), first, last);
    }
    weigh_block(item, span, next, cold, tiles);
  }

  // block_acc = probabilities times values
  void weigh_block(const Item& item, const Span& span, const Span& next, bool cold, Tiles& tiles) {
    const C* values = static_cast<const C*>(p.v);
    const int64_t* offset = span.offset;
    const uint32_t* weights = reinterpret_cast<const uint32_t*>(w.scores);
    int64_t low = span.low, high = span.high, first = low / SUB * SUB;
    for (int64_t s = first; s < high; s += SUB) {
      int64_t n = min64(high - s, SUB);
      bool more = s + SUB < high;
      typename Ahead<C>::List soon{values, offset + s + SUB, cold && more ? high - s - SUB : 0};
      Ahead<C> ahead = ahead_of(s, s == first, !more, soon, values, next);
      if constexpr (KIND == KEY_BYTES) {
        pack_value_bytes(values, offset + s, low - s, high - s, n, p.head_dim, width, ahead,
                         w.values);
        product<VALUE_BYTES>(2 * item.rows, width / W,
                             reinterpret_cast<const uint32_t*>(w.weights + s), BLOCK / 4, w.values,
                             width, ceil_div(n, 4), reinterpret_cast<float*>(w.sums), width,
                             s != first);
      } else if constexpr (TILES) {
        int64_t whole = round_up(n, STEP);
        pack_value_pairs(values, offset + s, low - s, high - s, whole, p.head_dim, width, ahead,
                         w.values);
        tiles.weigh(weights + s / 2, BLOCK, w.values, whole / 2, width, w.block_acc, s != first);
      } else if constexpr (KIND == PAIRS) {
        pack_value_pairs(values, offset + s, low - s, high - s, n, p.head_dim, width, ahead,
                         w.values);
        product<PAIRS>(item.rows, width / W, weights + s / 2, BLOCK, w.values, width,
                       ceil_div(n, 2), w.block_acc, width, s != first);
      } else {
        pack_values(values, offset + s, low - s, high - s, n, p.head_dim, width, ahead, w.values);
        product<FLOATS>(item.rows, width / W, weights + s, BLOCK, w.values, width, n, w.block_acc,
                        width, s != first);
      }
    }
    for (int64_t r = 0; KIND == KEY_BYTES && r < item.rows; r++) {
      join_bytes(w.sums + r * width, w.sums + (item.rows + r) * width, 0, w.p_step[r], width,
                 w.block_acc + r * width);
    }
  }

  // The visible tokens of an item in a block
  Span span_of(const Item& item, int64_t block, int64_t* offset) {
    int64_t start = first_position(item);
    int64_t end = start + (item.row + item.rows - 1) / group + 1;
    int64_t begin = p.window ? max64(0, start + item.row / group - p.window + 1) : 0;
    Span span{offset, max64(0, begin - block * BLOCK), min64(BLOCK, end - block * BLOCK)};
    find_tokens(item, block, span.low, span.high, offset);
    return span;
  }

  // `cold`: this thread did not run the item before
  void run(const Item& item, const Item* following, bool cold) {
    Tiles tiles(item.rows, depth);
    load_queries(item, tiles);
    for (int64_t r = 0; r < item.rows; r++) {
      w.m[r] = NONE;
      w.l[r] = 0.0f;
    }
    memset(w.acc, 0, item.rows * width * 4);
    Span span = span_of(item, item.block, w.offset);
    for (int64_t block = item.block; block < item.blocks; block++) {
      // what comes next: another block, or another item, most likely on this thread
      int64_t* free = w.offset + (block + 1 - item.block) % 2 * BLOCK;
      Span next{free, 0, 0};
      if (block + 1 < item.blocks) {
        next = span_of(item, block + 1, free);
      } else if (following) {
        next = span_of(*following, following->block, free);
      }
      run_block(item, block, span, next, cold, tiles);
      cold = false;
      if (item.partial >= 0) return keep_partial(item);
      merge_rows(item.rows, w.m, w.l, w.acc, w.block_m, w.block_l, w.block_acc, width);
      span = next;
    }
    write(item, w.m, w.l, w.acc);
  }

  void keep_partial(const Item& item) {
    float* to = shared.partials + item.partial;
    memcpy(to, w.block_m, item.rows * 4);
    memcpy(to + item.rows, w.block_l, item.rows * 4);
    memcpy(to + 2 * item.rows, w.block_acc, item.rows * width * 4);
  }

  void write(const Item& item, const float* m, const float* l, const float* acc) {
    int64_t token = p.q_start[item.sequence];
    for (int64_t r = 0; r < item.rows; r++) {
      int64_t row = item.row + r;
      write_row<T, KIND>(p, token + row / group, item.head * group + row % group, m[r], l[r],
                   acc + r * width);
    }
  }
};

template <typename T, typename C>
static void attention_body(void* context, int64_t index) {
  auto& shared = *static_cast<Shared*>(context);
  const AttentionArgs& p = *shared.args;
  constexpr Lanes KIND = Worker<T, C>::KIND;
  int64_t depth = p.head_dim / (KIND == KEY_BYTES ? 4 : KIND == PAIRS ? 2 : 1);
  int64_t lanes = KIND == KEY_BYTES ? round_up(depth, W / 4) : depth;
  int64_t width = result_width<KIND>(p.head_dim);
  char* memory = static_cast<char*>(scratch(0, Workspace::bytes(lanes, width)));
  if (!memory) {
    __atomic_store_n(&shared.failed, 1, __ATOMIC_RELAXED);
    return;
  }
  static thread_local int64_t last = -1;  // of another call: then a little is not fetched
  bool cold = index == 0 || last != index - 1;
  last = index;
  Worker<T, C>(shared, memory, depth, lanes, width).run(
      shared.items[index], index + 1 < shared.count ? &shared.items[index + 1] : nullptr, cold);
}

// Lists the work items; counts only, if `items` is null. A split item has one block.
static int64_t list_items(const AttentionArgs& p, bool split, int64_t width, Item* items,
                          int64_t* floats) {
  int64_t group = p.q_heads / p.kv_heads, n = 0, used = 0;
  for (int64_t b = 0; b < p.sequences; b++) {
    int64_t q_len = p.q_start[b + 1] - p.q_start[b], rows = q_len * group;
    if (p.seq_len[b] < q_len) continue;  // padding; its output is zeroed
    for (int64_t row = (rows - 1) / ROWS * ROWS; row >= 0 && rows; row -= ROWS) {
      int64_t count = min64(ROWS, rows - row), start = p.seq_len[b] - q_len;
      int64_t last = (start + (row + count - 1) / group) / BLOCK + 1;
      int64_t first = p.window ? max64(0, start + row / group - p.window + 1) / BLOCK : 0;
      bool cut = split && last - first > 1;
      for (int64_t h = 0; h < p.kv_heads; h++) {
        for (int64_t k = first; k < (cut ? last : first + 1); k++, n++) {
          if (items) {
            items[n] = Item{(int32_t)b, (int32_t)h, (int32_t)row, (int32_t)count, (int32_t)k,
                            (int32_t)(cut ? k + 1 : last), cut ? used : -1};
          }
          if (cut) used += partial_floats(count, width);
        }
      }
    }
  }
  *floats = used;
  return n;
}

// Merges the partial results of split items, which lie side by side in block order.
// acc: [ROWS][width]
template <typename T, Lanes KIND>
static void merge_items(const Shared& shared, int64_t width, float* acc) {
  const AttentionArgs& p = *shared.args;
  int64_t group = p.q_heads / p.kv_heads;
  for (int64_t i = 0; i < shared.count;) {
    const Item& item = shared.items[i];
    if (item.partial < 0) {
      i++;
      continue;
    }
    int64_t end = i + 1;
    while (end < shared.count && shared.items[end].partial >= 0 &&
           shared.items[end].block == shared.items[end - 1].block + 1) end++;
    float m[ROWS], l[ROWS] = {};
    for (float& top : m) top = NONE;
    memset(acc, 0, item.rows * width * 4);
    for (int64_t k = i; k < end; k++) {
      const float* from = shared.partials + shared.items[k].partial;
      merge_rows(item.rows, m, l, acc, from, from + item.rows, from + 2 * item.rows, width);
    }
    for (int64_t r = 0; r < item.rows; r++) {
      int64_t row = item.row + r;
      write_row<T, KIND>(p, p.q_start[item.sequence] + row / group,
                         item.head * group + row % group, m[r], l[r], acc + r * width);
    }
    i = end;
  }
}

template <typename T, typename C>
static int run_attention(const AttentionArgs& p) {
  constexpr Lanes KIND = key_lanes<C>();
  int64_t width = result_width<KIND>(p.head_dim), floats = 0;
  int64_t row_bytes = p.q_heads * p.head_dim * static_cast<int64_t>(sizeof(T));
  char* out = static_cast<char*>(p.out);
  for (int64_t b = 0; b < p.sequences; b++) {
    int64_t q_len = p.q_start[b + 1] - p.q_start[b];
    if (p.seq_len[b] < q_len) memset(out + p.q_start[b] * row_bytes, 0, q_len * row_bytes);
  }
  int64_t live = p.sequences ? p.q_start[p.sequences] : 0;
  memset(out + live * row_bytes, 0, (p.tokens - live) * row_bytes);

  // split over blocks when there is too little else to keep the threads evenly busy
  int64_t threads = thread_count(), count = list_items(p, false, width, nullptr, &floats);
  bool split = threads > 1 && count < 8 * threads;
  if (split) count = list_items(p, true, width, nullptr, &floats);
  int64_t item_bytes = round_up(count * static_cast<int64_t>(sizeof(Item)), 64);
  char* memory = static_cast<char*>(scratch(1, item_bytes + 4 * (floats + ROWS * width)));
  if (!memory) return 12;  // ENOMEM
  Item* items = reinterpret_cast<Item*>(memory);
  float* merged = reinterpret_cast<float*>(memory + item_bytes);
  list_items(p, split, width, items, &floats);
  Shared shared{&p, items, count, merged + ROWS * width, 0};
  run_parallel(attention_body<T, C>, &shared, count);
  if (shared.failed) return 12;
  if (floats) merge_items<T, KIND>(shared, width, merged);
  return 0;
}

static int attention(const void* args) {
  const auto& p = *static_cast<const AttentionArgs*>(args);
  if (p.kv_int8) return p.f32 ? run_attention<float, int8_t>(p) : run_attention<bf16, int8_t>(p);
  return p.f32 ? run_attention<float, float>(p) : run_attention<bf16, bf16>(p);
}

}  // namespace IPX_ISA
}  // namespace ipx
