// Inputs of quantized products: x [M, K] as the kernels read it, made once per call.
//
// int8: q = round(x / scale), scale = largest magnitude / 127 of each row or input group, or given.
// fp8 (e4m3): the same with 448; the values, which bfloat16 holds exactly, take their place in x.
// Sums of each group's inputs are for weights with an offset or an unsigned zero.
//
// A row is quantized by itself, so its bits do not depend on the others. A NaN or infinity makes
// its scale, and so its results, not finite: the largest magnitude is taken of the bits as
// integers, in which a NaN is largest.
#pragma once
#include "abi.h"
#include "linear.h"
#include "quant_pack.h"
#include "simd.h"

namespace ipx {
namespace IPX_ISA {

struct QuantRows {
  int8_t* bytes;         // [M] int8, ldb apart; zero from K on
  uint32_t* lanes;       // [M] pairs or floats, ldx apart; zero from K on
  int32_t* start;        // [M, groups] sum times -128 or -8, what stored integers are too large by
  float* sum;            // [M, groups] of the inputs, in steps of the scale if they are quantized
  float* scale;          // [M, scales] times unit
  int64_t ldb, ldx, scales;
  int64_t scale_step;    // from group to group: 0 if a row has one scale
};

struct QuantJob {
  const QuantLinearArgs* args;
  QuantLayout layout;
  QuantRows rows;        // unless each thread makes its own
  int64_t blocks_per_item;
  uint32_t own_rows;     // number of the call if they do, else 0
  int failed;            // a thread had no memory
};

IPX_INLINE Vec scale_at(const char* scales, int64_t i, bool half) {
  return half ? load_half(reinterpret_cast<const uint16_t*>(scales) + i)
              : load(reinterpret_cast<const float*>(scales) + i);
}

// nearest value of e4m3, ties to even, for magnitudes up to 448
IPX_INLINE Vec to_fp8(Vec x) {
  Raw u = as_raw(x);
  Raw odd = raw_and(shift_right<20>(u), raw_set1(1));
  Raw r = raw_and(raw_add(u, raw_add(odd, raw_set1(0x7ffff))), raw_set1(0xfff00000));
  Vec small = mul(nearest(mul(x, set1(512.0f))), set1(1.0f / 512));
  return where_less(magnitude(x), set1(0x1p-6f), small, as_vec(r));
}

IPX_INLINE Vec clamp(Vec x, Vec limit) {
  return minimum(maximum(x, sub(zero(), limit)), limit);  // NaN becomes -limit
}

// n values -> bytes, and the sum of them. The quotient by the scale is that of a division, which
// would take longer than all the rest: a product with the inverse, and what is left of it
// (Markstein 1990, IBM Journal of Research and Development 34(1)).
template <typename T>
static float to_bytes(const T* x, int8_t* to, int64_t n, float scale) {
  const Vec limit = set1(127.0f), inverse = set1(1.0f / scale), minus_scale = set1(-scale);
  Raw total = raw_zero();
  for (int64_t c = 0; c < n; c += W) {
    Vec value = load_n(x + c, n - c), y = clamp(mul(value, inverse), limit);
    Raw q = to_int(clamp(fma(fma(y, minus_scale, value), inverse, y), limit));
    store_bytes(to + c, q);
    total = raw_add(total, q);
  }
  return sum(to_float(total));
}

// n values, quantized to fp8 if there is a scale -> floats, and the sum of them
template <typename T>
static float to_floats(const T* x, float* to, int64_t n, bool fp8, Vec scale) {
  const Vec limit = set1(448.0f);
  Vec total = zero();
  for (int64_t c = 0; c < n; c += W) {
    Vec y = load_n(x + c, n - c);
    if (fp8) y = to_fp8(minimum(maximum(divide(y, scale), sub(zero(), limit)), limit));
    store(to + c, y);
    total = add(total, y);
  }
  return sum(total);
}

struct QuantRowsJob {
  const QuantLinearArgs* args;
  const QuantLayout* layout;
  QuantRows rows;
  bool pairs;            // lanes are pairs of bf16, else floats
};

template <typename T>
static float input_scale(const QuantLinearArgs& p, const T* x, int64_t n) {
  if (p.input == INPUT_AS_IT_IS) return 1.0f;
  if (p.input_scale) return *p.input_scale;
  float scale = largest_of(x, n) / (p.input == INPUT_INT8 ? 127.0f : 448.0f);
  return scale < 0x1p-120f ? 1.0f : scale;  // whose inverse may overflow
}

template <typename T>
static void quant_row(void* context, int64_t row) {
  const auto& job = *static_cast<QuantRowsJob*>(context);
  const QuantLinearArgs& p = *job.args;
  const QuantLayout& l = *job.layout;
  const QuantRows& r = job.rows;
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  int64_t input_group = r.scale_step ? p.input_group : p.inputs;
  alignas(64) float part[1024 + W];
  float scale = 1.0f;
  for (int64_t g = 0; g < l.groups; g++) {
    int64_t k = g * l.group, n = min64(l.group, p.inputs - k);
    if (k % input_group == 0) scale = input_scale(p, x + k, min64(input_group, p.inputs - k));
    float total = 0.0f;
    if (r.bytes) {
      total = to_bytes(x + k, r.bytes + row * r.ldb + k, n, scale);
    } else {
      for (int64_t c = 0; c < n; c += 1024) {
        int64_t width = min64(1024, n - c);
        float* to = reinterpret_cast<float*>(r.lanes + row * r.ldx) + k + c;
        total += to_floats(x + k + c, job.pairs ? part : to, width, p.input == INPUT_FP8,
                           set1(scale));
        auto* pairs = reinterpret_cast<bf16*>(r.lanes + row * r.ldx) + k + c;
        for (int64_t i = 0; job.pairs && i < width; i += W) store(pairs + i, load(part + i));
      }
    }
    r.sum[row * l.groups + g] = total;
    if (r.bytes) {
      int32_t zero = p.weight == WEIGHT_INT8 ? 128 : 8;
      r.start[row * l.groups + g] = -zero * static_cast<int32_t>(total);
    }
    if (k == 0 || r.scale_step) {
      r.scale[row * r.scales + g] = scale * static_cast<float>(p.unit);
    }
  }
}

// Scratch of the calling thread, 64-byte aligned parts: valid until the next call.
template <typename T>
static bool quant_rows(const QuantLinearArgs& p, const QuantLayout& l, bool alone, QuantRows& r) {
  const bool pairs = sizeof(T) == 2 && DOT_PAIRS;
  r = QuantRows{};
  r.scale_step = p.input_group && p.input_group < p.inputs ? 1 : 0;
  r.scales = r.scale_step ? l.groups : 1;
  r.ldb = round_up(l.depth + W, 64);
  r.ldx = round_up((pairs ? l.depth / 2 : l.depth) + W, 16);
  bool integers = p.input == INPUT_INT8;
  int64_t values = round_up(p.rows * (integers ? r.ldb : 4 * r.ldx), 64);
  int64_t table = round_up(p.rows * l.groups * 4, 64);
  char* memory = static_cast<char*>(scratch(2, values + 3 * table));
  if (!memory) return false;
  if (integers) r.bytes = reinterpret_cast<int8_t*>(memory);
  if (!integers) r.lanes = reinterpret_cast<uint32_t*>(memory);
  r.start = reinterpret_cast<int32_t*>(memory + values);
  r.sum = reinterpret_cast<float*>(memory + values + table);
  r.scale = reinterpret_cast<float*>(memory + values + 2 * table);
  QuantRowsJob job{&p, &l, r, pairs};
  int64_t work = p.rows * p.inputs * (r.scale_step ? 2 : 1);  // scales of groups cost as much again
  run_parallel(quant_row<T>, &job, p.rows, alone || work < 8192);  // below 2 us
  return true;
}

// Few rows are quantized by each thread for itself: that takes as long as one thread that does it
// for all, and no core has to fetch the result from another (measured: 8 rows of a product of 576
// by 960 took 21 us instead of 15 where cores share no cache).
constexpr int64_t OWN_ROWS = 65536;      // elements

// The rows of a job for the calling thread; null without memory.
template <typename T>
static const QuantRows* rows_of(const QuantJob& job) {
  static thread_local uint32_t made = 0;
  static thread_local QuantRows own;
  if (!job.own_rows) return &job.rows;
  if (made != job.own_rows) {
    made = 0;
    if (!quant_rows<T>(*job.args, job.layout, true, own)) return nullptr;
    made = job.own_rows;
  }
  return &own;
}

}  // namespace IPX_ISA
}  // namespace ipx
