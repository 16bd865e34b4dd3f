// Row-wise kernels: RMS norm (with residual), gated activation, KV write, token embedding, and
// rotary embedding fused with per-head norms and the KV write.
//
//   norm  y = w * x / sqrt(mean(x^2) + eps)        [T, d]; 2 to 4 * T * d elements moved
//   glu   y = act(x[:, :F]) * x[:, F:]             [T, 2F] -> [T, F]; 3 * T * F elements
//   rope  (a, b) -> (a cos - b sin, b cos + a sin) [T, H, D]; reads and writes q and k once
//
// All are bound by the bytes they move, at decode sizes by the cache they find them in (below
// 1 us a call); statistics are kept in float32 and in a fixed order per row, so a row's bits depend
// on that row alone. Rows are divided over threads only when there is enough to do.
#pragma once
#include "abi.h"
#include "simd.h"

namespace ipx {
namespace IPX_ISA {

// Elements of an item: about 2 us of work, several times what handing it out costs
constexpr int64_t ROW_WORK = 16384;

template <typename Args>
struct RowJob {
  const Args* args;
  void (*rows)(const Args&, int64_t first, int64_t last);
  int64_t count, per_item;
};

template <typename Args>
static void row_body(void* context, int64_t item) {
  auto& job = *static_cast<RowJob<Args>*>(context);
  int64_t first = item * job.per_item;
  job.rows(*job.args, first, min64(first + job.per_item, job.count));
}

template <typename Args>
static int for_rows(const Args& args, int64_t count, int64_t elements_per_row,
                    void (*rows)(const Args&, int64_t, int64_t)) {
  int64_t least = max64(ceil_div(ROW_WORK, max64(1, elements_per_row)), ceil_div(count, 60000));
  RowJob<Args> job{&args, rows, count, least};
  run_parallel(row_body<Args>, &job, ceil_div(count, least));
  return 0;
}

template <typename T>
IPX_INLINE Vec rounded(Vec x) {
  T lanes[W];
  store(lanes, x);
  return load(lanes);
}

// ---- norms ----

// y = norm(x) * (w + offset), in the order that the reference rounds
template <typename T>
IPX_INLINE void apply_norm(const T* x, const T* weight, T* y, int64_t n, float inverse,
                           float offset, bool cast_first) {
  for (int64_t c = 0; c < n; c += W) {
    int64_t left = n - c;
    Vec value = mul(load_n(x + c, left), set1(inverse));
    if (cast_first) value = rounded<T>(value);
    store_n(y + c, mul(value, add(load_n(weight + c, left), set1(offset))), left);
  }
}

template <typename T>
IPX_INLINE float inverse_rms(const T* x, int64_t n, float eps) {
  Vec squares = zero();
  for (int64_t c = 0; c < n; c += W) {
    Vec v = load_n(x + c, n - c);
    squares = fma(v, v, squares);
  }
  return 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + eps);
}

template <typename T>
static void norm_rows(const NormArgs& p, int64_t first, int64_t last) {
  const T* weight = static_cast<const T*>(p.weight);
  for (int64_t t = first; t < last; t++) {
    const T* x = static_cast<const T*>(p.x) + t * p.x_stride;
    T* y = static_cast<T*>(p.out) + t * p.width;
    if (p.residual) {
      const T* residual = static_cast<const T*>(p.residual) + t * p.width;
      T* total = static_cast<T*>(p.residual_out) + t * p.width;
      for (int64_t c = 0; c < p.width; c += W) {
        int64_t left = p.width - c;
        store_n(total + c, add(load_n(x + c, left), load_n(residual + c, left)), left);
      }
      x = total;  // the norm sees the rounded sum, as the decomposition does
    }
    float inverse = inverse_rms(x, p.width, static_cast<float>(p.eps));
    apply_norm(x, weight, y, p.width, inverse, static_cast<float>(p.weight_offset),
               p.cast_before_weight != 0);
  }
}

static int norm(const void* args) {
  const auto& p = *static_cast<const NormArgs*>(args);
  return for_rows(p, p.tokens, p.width, p.f32 ? norm_rows<float> : norm_rows<bf16>);
}

// ---- gated activation ----

IPX_INLINE Vec silu(Vec x) {
  return mul(x, reciprocal(add(set1(1.0f), exp_vec(sub(zero(), x)))));
}

// x * 0.5 * (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), which is x * sigmoid(2u)
IPX_INLINE Vec gelu_tanh(Vec x) {
  Vec cube = mul(mul(x, x), x);
  Vec u = mul(set1(1.59576912160573f), fma(set1(0.044715f), cube, x));
  return mul(x, reciprocal(add(set1(1.0f), exp_vec(sub(zero(), u)))));
}

template <typename T>
static void glu_rows(const GluArgs& p, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; t++) {
    const T* gate = static_cast<const T*>(p.x) + t * p.x_stride;
    const T* up = gate + p.width;
    T* y = static_cast<T*>(p.out) + t * p.width;
    for (int64_t c = 0; c < p.width; c += W) {
      int64_t left = p.width - c;
      Vec x = load_n(gate + c, left);
      // the activation is rounded before the product, as the decomposition does
      Vec a = rounded<T>(p.gelu ? gelu_tanh(x) : silu(x));
      store_n(y + c, mul(a, load_n(up + c, left)), left);
    }
  }
}

static int glu(const void* args) {
  const auto& p = *static_cast<const GluArgs*>(args);
  return for_rows(p, p.tokens, 4 * p.width, p.f32 ? glu_rows<float> : glu_rows<bf16>);
}

// ---- KV write ----

IPX_INLINE int64_t slot_offset(int64_t slot, int64_t page_size, int64_t page_stride,
                               int64_t token_stride) {
  return slot / page_size * page_stride + slot % page_size * token_stride;
}

// One token's keys or values of one head. In int8: code = round(x * 127 / m), and m / 127 behind
// them, for the largest magnitude m; NaN if that is not finite.
template <typename T>
IPX_INLINE void store_kv(const T* x, int64_t n, T* to) {
  memcpy(to, x, n * sizeof(T));
}
template <typename T>
IPX_INLINE void store_kv(const T* x, int64_t n, int8_t* to) {
  int8_t codes[512 + W];
  float peak = largest_of(x, n), scale = peak / 127.0f, inverse = 127.0f / peak;
  if (!(peak < __builtin_inff())) {
    scale = __builtin_nanf("");
    inverse = 0.0f;
  } else if (peak < 0x1p-100f) {
    scale = inverse = 0.0f;
  }
  if (inverse == 0.0f) {
    memset(codes, 0, n);
  } else {
    for (int64_t c = 0; c < n; c += W) {
      store_bytes(codes + c, to_int(mul(load_n(x + c, n - c), set1(inverse))));
    }
  }
  memcpy(to, codes, n);
  memcpy(to + n, &scale, 4);
}

template <typename T, typename C>
static void kv_write_rows(const KvWriteArgs& p, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; t++) {
    int64_t at = slot_offset(p.slot[t], p.page_size, p.page_stride, p.token_stride);
    const T* k = static_cast<const T*>(p.k) + t * p.k_stride;
    const T* v = static_cast<const T*>(p.v) + t * p.v_stride;
    for (int64_t h = 0; h < p.kv_heads; h++) {
      int64_t to = at + h * p.head_stride;
      store_kv(k + h * p.head_dim, p.head_dim, static_cast<C*>(p.k_cache) + to);
      store_kv(v + h * p.head_dim, p.head_dim, static_cast<C*>(p.v_cache) + to);
    }
  }
}

static int kv_write(const void* args) {
  const auto& p = *static_cast<const KvWriteArgs*>(args);
  // padding tokens may share slots of page 0: nobody reads what they leave there
  auto rows = p.kv_int8
      ? (p.f32 ? kv_write_rows<float, int8_t> : kv_write_rows<bf16, int8_t>)
      : (p.f32 ? kv_write_rows<float, float> : kv_write_rows<bf16, bf16>);
  return for_rows(p, p.tokens, 2 * p.kv_heads * p.head_dim, rows);
}

// ---- token embedding ----

template <typename T>
static void embedding_rows(const EmbeddingArgs& p, int64_t first, int64_t last) {
  Vec scale = set1(static_cast<float>(p.scale));
  for (int64_t t = first; t < last; t++) {
    const T* x = static_cast<const T*>(p.weight) + p.ids[t] * p.weight_stride;
    T* y = static_cast<T*>(p.out) + t * p.width;
    if (p.scale == 1.0) {
      memcpy(y, x, p.width * sizeof(T));
      continue;
    }
    for (int64_t c = 0; c < p.width; c += W) {
      int64_t left = p.width - c;
      store_n(y + c, mul(load_n(x + c, left), scale), left);
    }
  }
}

static int embedding(const void* args) {
  const auto& p = *static_cast<const EmbeddingArgs*>(args);
  return for_rows(p, p.tokens, 2 * p.width, p.f32 ? embedding_rows<float> : embedding_rows<bf16>);
}

// ---- rope ----

// Rotates one head. neox pairs (i, i + R/2); gptj pairs (2i, 2i + 1). The rest is copied.
template <typename T>
IPX_INLINE void rotate(const T* x, T* y, const float* cos, const float* sin, int64_t rotary,
                       int64_t head_dim, bool interleaved) {
  int64_t half = rotary / 2;
  if (!interleaved) {
    for (int64_t c = 0; c < half; c += W) {
      int64_t n = half - c;
      Vec a = load_n(x + c, n), b = load_n(x + half + c, n);
      Vec co = load_n(cos + c, n), si = load_n(sin + c, n);
      store_n(y + c, sub(mul(a, co), mul(b, si)), n);
      store_n(y + half + c, add(mul(b, co), mul(a, si)), n);
    }
  } else {
    for (int64_t i = 0; i < half; i++) {
      float a = scalar_from(x[2 * i]), b = scalar_from(x[2 * i + 1]);
      float pair[W] = {a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]};
      store_n(y + 2 * i, load(pair), 2);
    }
  }
  if (rotary < head_dim && y != x) memcpy(y + rotary, x + rotary, (head_dim - rotary) * sizeof(T));
}

template <typename T, typename C>
static void rope_rows(const RopeArgs& p, int64_t first, int64_t last) {
  alignas(64) T normed[512], turned[512];
  float eps = static_cast<float>(p.eps), offset = static_cast<float>(p.weight_offset);
  int64_t half = p.rotary_dim / 2, n = p.head_dim;
  size_t bytes = n * sizeof(T);
  for (int64_t t = first; t < last; t++) {
    const float* cos = p.cos_sin + static_cast<int64_t>(p.position[t]) * p.rotary_dim;
    const float* sin = cos + half;
    auto head = [&](const T* x, const void* weight, T* y) {
      if (weight) {
        apply_norm(x, static_cast<const T*>(weight), normed, n, inverse_rms(x, n, eps), offset,
                   p.cast_before_weight != 0);
        x = normed;
      }
      rotate(x, y, cos, sin, p.rotary_dim, n, p.interleaved != 0);
    };
    const T* q = static_cast<const T*>(p.q) + t * p.q_stride;
    T* q_out = static_cast<T*>(p.q_out) + t * p.q_out_stride;
    for (int64_t h = 0; h < p.q_heads; h++) {
      // through a buffer: q_out may be q, and the rotation reads both halves
      head(q + h * n, p.q_norm, turned);
      memcpy(q_out + h * n, turned, bytes);
    }
    const T* k = static_cast<const T*>(p.k) + t * p.k_stride;
    const T* v = static_cast<const T*>(p.v) + t * p.v_stride;
    int64_t at = p.k_cache
        ? slot_offset(p.slot[t], p.page_size, p.page_stride, p.token_stride) : 0;
    for (int64_t h = 0; h < p.kv_heads; h++, at += p.head_stride) {
      head(k + h * n, p.k_norm, turned);
      if (p.k_out) memcpy(static_cast<T*>(p.k_out) + t * p.k_out_stride + h * n, turned, bytes);
      if (p.k_cache) {
        store_kv<T>(turned, n, static_cast<C*>(p.k_cache) + at);
        store_kv<T>(v + h * n, n, static_cast<C*>(p.v_cache) + at);
      }
    }
  }
}

static int rope(const void* args) {
  const auto& p = *static_cast<const RopeArgs*>(args);
  auto rows = p.kv_int8 ? (p.f32 ? rope_rows<float, int8_t> : rope_rows<bf16, int8_t>)
                        : (p.f32 ? rope_rows<float, float> : rope_rows<bf16, bf16>);
  return for_rows(p, p.tokens, 4 * (p.q_heads + p.kv_heads) * p.head_dim, rows);
}

}  // namespace IPX_ISA
}  // namespace ipx
