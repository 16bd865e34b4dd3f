// One vector vocabulary for all instruction sets, so that each kernel is written once.
//
// Included by isa.cpp, which is compiled once per instruction set. Everything lives in the inline
// namespace IPX_ISA and nothing here instantiates a standard-library template: a function shared
// between translation units of different -m flags would be merged by the linker into any one of
// them, and could then run AVX-512 on a machine without it.
//
// W floats per vector. "pairs": a 32-bit lane that holds two consecutive bf16 values; DOT_PAIRS
// says that the instruction set multiplies such lanes (vdpbf16ps).
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define IPX_INLINE static inline __attribute__((always_inline))
#define IPX_UNROLL _Pragma("GCC unroll 16")

namespace ipx {
namespace IPX_ISA {

struct bf16 {
  uint16_t bits;
};

IPX_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
IPX_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
IPX_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
IPX_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// asm volatile: GCC drops _mm_prefetch in small inlined functions
IPX_INLINE void prefetch(const void* p) { asm volatile("prefetcht0 %0" ::"m"(*(const char*)p)); }
IPX_INLINE void prefetch_for_write(const void* p) {
  asm volatile("prefetchw %0" ::"m"(*(const char*)p));
}
IPX_INLINE void prefetch_l2(const void* p) {
  asm volatile("prefetcht1 %0" ::"m"(*(const char*)p));
}

IPX_INLINE float scalar_from(bf16 x) {
  uint32_t u = (uint32_t)x.bits << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
IPX_INLINE float scalar_from(float x) { return x; }

#if defined(__AVX512F__)
constexpr int W = 16;
using Vec = __m512;
using Raw = __m512i;

IPX_INLINE Vec zero() { return _mm512_setzero_ps(); }
IPX_INLINE Vec set1(float x) { return _mm512_set1_ps(x); }
IPX_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
IPX_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
IPX_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
IPX_INLINE Vec divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }
// 1 / x to about 2^-24 without a division; x from 2^-126 to 2^126
IPX_INLINE Vec reciprocal(Vec x) {
  Vec r = _mm512_rcp14_ps(x);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(x, r, _mm512_set1_ps(1.0f)), r, r);
}
IPX_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
IPX_INLINE Vec maximum(Vec a, Vec b) { return _mm512_max_ps(a, b); }
IPX_INLINE Vec minimum(Vec a, Vec b) { return _mm512_min_ps(a, b); }
IPX_INLINE Vec nearest(Vec a) { return _mm512_roundscale_ps(a, 8); }
IPX_INLINE float sum(Vec a) { return _mm512_reduce_add_ps(a); }
IPX_INLINE float largest(Vec a) { return _mm512_reduce_max_ps(a); }
// x where low <= lane + offset < high, else other
IPX_INLINE Vec keep_range(Vec x, int64_t low, int64_t high, Vec other) {
  __mmask16 below = high >= W ? 0xffff : high <= 0 ? 0 : (1u << high) - 1;
  __mmask16 above = low <= 0 ? 0xffff : low >= W ? 0 : (0xffffu << low) & 0xffff;
  return _mm512_mask_mov_ps(other, below & above, x);
}
// p * 2^n for whole n
IPX_INLINE Vec scale_exponent(Vec p, Vec n) { return _mm512_scalef_ps(p, n); }
// value, but 0 where x < floor; a NaN in x keeps the value
IPX_INLINE Vec zero_below(Vec value, Vec x, Vec floor) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, floor, _CMP_NLT_UQ), value);
}
IPX_INLINE uint32_t mask_less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
// x in the lanes whose bits are set, else other
IPX_INLINE Vec keep_lanes(Vec x, uint32_t bits, Vec other) {
  return _mm512_mask_mov_ps(other, static_cast<__mmask16>(bits), x);
}
// stores x in the lanes whose bits are set
IPX_INLINE void store_lanes(float* p, uint32_t bits, Vec x) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(bits), x);
}
// a < b ? yes : no
IPX_INLINE Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
}
IPX_INLINE Raw raw_add(Raw a, Raw b) { return _mm512_add_epi32(a, b); }
IPX_INLINE Raw raw_sub(Raw a, Raw b) { return _mm512_sub_epi32(a, b); }
IPX_INLINE Raw raw_and(Raw a, Raw b) { return _mm512_and_si512(a, b); }
IPX_INLINE Raw raw_xor(Raw a, Raw b) { return _mm512_xor_si512(a, b); }
template <int N> IPX_INLINE Raw shift_left(Raw x) { return _mm512_slli_epi32(x, N); }
template <int N> IPX_INLINE Raw shift_right(Raw x) { return _mm512_srli_epi32(x, N); }
template <int N> IPX_INLINE Raw shift_signed(Raw x) { return _mm512_srai_epi32(x, N); }
IPX_INLINE Vec to_float(Raw x) { return _mm512_cvtepi32_ps(x); }
IPX_INLINE Raw to_int(Vec x) { return _mm512_cvtps_epi32(x); }  // nearest, ties to even
IPX_INLINE Raw raw_max(Raw a, Raw b) { return _mm512_max_epi32(a, b); }
IPX_INLINE int32_t raw_largest(Raw a) { return _mm512_reduce_max_epi32(a); }
IPX_INLINE int32_t raw_sum(Raw a) { return _mm512_reduce_add_epi32(a); }
IPX_INLINE void store_bytes(int8_t* p, Raw x) {  // W values, cut off at the ends of a byte
  _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(x));
}
IPX_INLINE void store_low_bytes(uint8_t* p, Raw x) {  // the low byte of each lane
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x));
}
IPX_INLINE Vec load_n(const int8_t* p, int64_t n) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(n >= W ? 0xffff : (1u << n) - 1, p)));
}
// lanes (a[i], b[i], c[i], d[i]) from W bytes each
IPX_INLINE Raw interleave(const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d) {
  const Raw quarters = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const Raw bytes = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  Raw x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)a));
  x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i*)b), 1);
  x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i*)c), 2);
  x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i*)d), 3);
  return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(quarters, x), bytes);
}
IPX_INLINE Vec load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
// both halves of the 64 bit products of 32 bit lanes
IPX_INLINE void wide_product(Raw a, Raw b, Raw& high, Raw& low) {
  Raw even = _mm512_mul_epu32(a, b), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), b);
  high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
  low = _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
}
// transposes 4 x 4 lanes in each 128 bits
IPX_INLINE void transpose_quarters(Raw (&r)[4]) {
  Raw a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
  Raw c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
  r[0] = _mm512_unpacklo_epi64(a, c), r[1] = _mm512_unpackhi_epi64(a, c);
  r[2] = _mm512_unpacklo_epi64(b, d), r[3] = _mm512_unpackhi_epi64(b, d);
}
IPX_INLINE Raw raw_zero() { return _mm512_setzero_si512(); }
IPX_INLINE Raw raw_load(const void* p) { return _mm512_loadu_si512(p); }
IPX_INLINE Raw raw_load_n(const void* p, int64_t n) {
  return _mm512_maskz_loadu_epi32(n >= W ? 0xffff : (1u << n) - 1, p);
}
IPX_INLINE void raw_store(void* p, Raw x) { _mm512_storeu_si512(p, x); }
IPX_INLINE Vec as_vec(Raw x) { return _mm512_castsi512_ps(x); }
IPX_INLINE Raw as_raw(Vec x) { return _mm512_castps_si512(x); }
IPX_INLINE Raw raw_set1(uint32_t x) { return _mm512_set1_epi32((int)x); }
IPX_INLINE Vec low_half(Raw pairs) { return as_vec(_mm512_slli_epi32(pairs, 16)); }
IPX_INLINE Vec high_half(Raw pairs) {
  return as_vec(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}
// lanes (a[i], b[i]) from W bf16 values each
// (a, b) of the low or of the high halves of 32-bit lanes
IPX_INLINE Raw low_halves(Raw a, Raw b) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16));
}
IPX_INLINE Raw high_halves(Raw a, Raw b) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b);
}
IPX_INLINE Raw interleave(const bf16* a, const bf16* b) {
  __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)a));
  __m512i y = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)b));
  return _mm512_or_si512(x, _mm512_slli_epi32(y, 16));
}
IPX_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
IPX_INLINE void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
IPX_INLINE Vec load_n(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(n >= W ? 0xffff : (1u << n) - 1, p);
}
IPX_INLINE void store_n(float* p, Vec x, int64_t n) {
  _mm512_mask_storeu_ps(p, n >= W ? 0xffff : (1u << n) - 1, x);
}
IPX_INLINE Vec load(const bf16* p) {
  return low_half(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)));
}
IPX_INLINE Vec load_n(const bf16* p, int64_t n) {
  return low_half(_mm512_cvtepu16_epi32(
      _mm256_maskz_loadu_epi16(n >= W ? 0xffff : (1u << n) - 1, p)));
}
IPX_INLINE __m256i to_bf16(Vec x) {
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  Raw u = as_raw(x);
  Raw odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  Raw r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
#endif
}
IPX_INLINE void store(bf16* p, Vec x) { _mm256_storeu_si256((__m256i*)p, to_bf16(x)); }
IPX_INLINE void store_n(bf16* p, Vec x, int64_t n) {
  _mm256_mask_storeu_epi16(p, n >= W ? 0xffff : (1u << n) - 1, to_bf16(x));
}
#if defined(__AVX512BF16__)
constexpr bool DOT_PAIRS = true;
IPX_INLINE Vec dot_pairs(Vec c, Raw a, Raw b) {
  return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}
#else
constexpr bool DOT_PAIRS = false;
IPX_INLINE Vec dot_pairs(Vec c, Raw, Raw) { return c; }
#endif

// Lanes of four bytes, w without and a with sign. c + dot of the four; exact.
// nibbles: two lanes of values up to 15, whose products are small enough for 16 bits.
#if defined(__AVX512VNNI__)
constexpr bool DOT_BYTES = true;
IPX_INLINE Raw dot_bytes(Raw c, Raw w, Raw a) {
  // asm: around the intrinsic GCC 12 copies accumulators, which halves the speed of a large tile
  asm("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(w), "v"(a));
  return c;
}
IPX_INLINE Raw dot_nibbles(Raw c, Raw w0, Raw a0, Raw w1, Raw a1) {
  return dot_bytes(dot_bytes(c, w0, a0), w1, a1);
}
#else  // vpmaddubsw alone would cut off 255 * 127 * 2
constexpr bool DOT_BYTES = false;
IPX_INLINE Raw dot_bytes(Raw c, Raw w, Raw a) {
  Raw even = _mm512_madd_epi16(_mm512_and_si512(w, _mm512_set1_epi16(255)),
                               _mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8));
  Raw odd = _mm512_madd_epi16(_mm512_srli_epi16(w, 8), _mm512_srai_epi16(a, 8));
  return _mm512_add_epi32(c, _mm512_add_epi32(even, odd));
}
IPX_INLINE Raw dot_nibbles(Raw c, Raw w0, Raw a0, Raw w1, Raw a1) {
  Raw words = _mm512_add_epi16(_mm512_maddubs_epi16(w0, a0), _mm512_maddubs_epi16(w1, a1));
  return _mm512_add_epi32(c, _mm512_madd_epi16(words, _mm512_set1_epi16(1)));
}
#endif

// The bf16 values of e4m3 codes, each in the low byte of 16 bits. Exponents move by 120; the codes
// below 8 have none and come from a table, since arithmetic on such floats can be very slow.
alignas(64) static const uint16_t FP8_SMALL[32] = {0,      0x3b00, 0x3b80, 0x3bc0,
                                                   0x3c00, 0x3c20, 0x3c40, 0x3c60};
IPX_INLINE Raw fp8_pairs(Raw codes) {
  Raw size = _mm512_and_si512(codes, _mm512_set1_epi16(0x7f));
  Raw y = _mm512_add_epi16(_mm512_slli_epi16(size, 4), _mm512_set1_epi16(0x3c00));
  __mmask32 small = _mm512_cmplt_epu16_mask(size, _mm512_set1_epi16(8));
  y = _mm512_mask_permutexvar_epi16(y, small, size, _mm512_load_si512(FP8_SMALL));
  __mmask32 nan = _mm512_cmpeq_epi16_mask(size, _mm512_set1_epi16(0x7f));
  y = _mm512_mask_mov_epi16(y, nan, _mm512_set1_epi16(0x7fc0));
  return _mm512_or_si512(y, _mm512_slli_epi16(_mm512_xor_si512(codes, size), 8));
}

// in-register transposition of W rows of W 32-bit lanes
IPX_INLINE void transpose(Raw (&r)[16]) {
  Raw t[16];
  IPX_UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  IPX_UNROLL for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  IPX_UNROLL for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  IPX_UNROLL for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

#else  // AVX2 + FMA
constexpr int W = 8;
using Vec = __m256;
using Raw = __m256i;

alignas(32) static const int32_t LANE_MASK[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                  0,  0,  0,  0,  0,  0,  0,  0};
IPX_INLINE Raw first_lanes(int64_t n) {
  return _mm256_loadu_si256((const __m256i*)(LANE_MASK + 8 - (n > 8 ? 8 : n < 0 ? 0 : n)));
}
IPX_INLINE Vec zero() { return _mm256_setzero_ps(); }
IPX_INLINE Vec set1(float x) { return _mm256_set1_ps(x); }
IPX_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
IPX_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
IPX_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
IPX_INLINE Vec divide(Vec a, Vec b) { return _mm256_div_ps(a, b); }
IPX_INLINE Vec reciprocal(Vec x) { return _mm256_div_ps(_mm256_set1_ps(1.0f), x); }
IPX_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
IPX_INLINE Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }
IPX_INLINE Vec minimum(Vec a, Vec b) { return _mm256_min_ps(a, b); }
IPX_INLINE Vec nearest(Vec a) { return _mm256_round_ps(a, 8); }
IPX_INLINE float sum(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
IPX_INLINE float largest(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
IPX_INLINE Vec keep_range(Vec x, int64_t low, int64_t high, Vec other) {
  Raw mask = _mm256_andnot_si256(first_lanes(low), first_lanes(high));
  return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(mask));
}
IPX_INLINE Vec scale_exponent(Vec p, Vec n) {
  Raw e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(e));
}
IPX_INLINE Vec zero_below(Vec value, Vec x, Vec floor) {
  return _mm256_and_ps(_mm256_cmp_ps(x, floor, _CMP_NLT_UQ), value);
}
IPX_INLINE __m256i lanes_of(uint32_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
  return _mm256_cmpeq_epi32(set, lane);
}
IPX_INLINE Vec keep_lanes(Vec x, uint32_t bits, Vec other) {
  return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(lanes_of(bits)));
}
IPX_INLINE void store_lanes(float* p, uint32_t bits, Vec x) {
  _mm256_maskstore_ps(p, lanes_of(bits), x);
}
IPX_INLINE uint32_t mask_less(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)));
}
IPX_INLINE Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
IPX_INLINE Raw raw_add(Raw a, Raw b) { return _mm256_add_epi32(a, b); }
IPX_INLINE Raw raw_sub(Raw a, Raw b) { return _mm256_sub_epi32(a, b); }
IPX_INLINE Raw raw_and(Raw a, Raw b) { return _mm256_and_si256(a, b); }
IPX_INLINE Raw raw_xor(Raw a, Raw b) { return _mm256_xor_si256(a, b); }
template <int N> IPX_INLINE Raw shift_left(Raw x) { return _mm256_slli_epi32(x, N); }
template <int N> IPX_INLINE Raw shift_right(Raw x) { return _mm256_srli_epi32(x, N); }
template <int N> IPX_INLINE Raw shift_signed(Raw x) { return _mm256_srai_epi32(x, N); }
IPX_INLINE Vec to_float(Raw x) { return _mm256_cvtepi32_ps(x); }
IPX_INLINE Raw to_int(Vec x) { return _mm256_cvtps_epi32(x); }
IPX_INLINE Raw raw_max(Raw a, Raw b) { return _mm256_max_epi32(a, b); }
IPX_INLINE int32_t raw_largest(Raw a) {
  __m128i x = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
IPX_INLINE int32_t raw_sum(Raw a) {
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
IPX_INLINE void store_bytes(int8_t* p, Raw x) {
  __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(words, words));
}
IPX_INLINE void store_low_bytes(uint8_t* p, Raw x) {
  x = _mm256_and_si256(x, _mm256_set1_epi32(255));
  __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words, words));
}
IPX_INLINE Vec load_n(const int8_t* p, int64_t n) {
  int64_t part = 0;
  memcpy(&part, p, n >= W ? W : n);
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(part)));
}
IPX_INLINE Raw interleave(const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d) {
  auto eight = [](const int8_t* p) { return _mm_loadl_epi64((const __m128i*)p); };
  __m128i ab = _mm_unpacklo_epi8(eight(a), eight(b)), cd = _mm_unpacklo_epi8(eight(c), eight(d));
  return _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd));
}
IPX_INLINE Vec load_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
IPX_INLINE void wide_product(Raw a, Raw b, Raw& high, Raw& low) {
  Raw even = _mm256_mul_epu32(a, b), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), b);
  high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
IPX_INLINE void transpose_quarters(Raw (&r)[4]) {
  Raw a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpackhi_epi32(r[0], r[1]);
  Raw c = _mm256_unpacklo_epi32(r[2], r[3]), d = _mm256_unpackhi_epi32(r[2], r[3]);
  r[0] = _mm256_unpacklo_epi64(a, c), r[1] = _mm256_unpackhi_epi64(a, c);
  r[2] = _mm256_unpacklo_epi64(b, d), r[3] = _mm256_unpackhi_epi64(b, d);
}
IPX_INLINE Raw raw_zero() { return _mm256_setzero_si256(); }
IPX_INLINE Raw raw_load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
IPX_INLINE Raw raw_load_n(const void* p, int64_t n) {
  return _mm256_maskload_epi32((const int*)p, first_lanes(n));
}
IPX_INLINE void raw_store(void* p, Raw x) { _mm256_storeu_si256((__m256i*)p, x); }
IPX_INLINE Vec as_vec(Raw x) { return _mm256_castsi256_ps(x); }
IPX_INLINE Raw as_raw(Vec x) { return _mm256_castps_si256(x); }
IPX_INLINE Raw raw_set1(uint32_t x) { return _mm256_set1_epi32((int)x); }
IPX_INLINE Vec low_half(Raw pairs) { return as_vec(_mm256_slli_epi32(pairs, 16)); }
IPX_INLINE Vec high_half(Raw pairs) {
  return as_vec(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000)));
}
IPX_INLINE Raw low_halves(Raw a, Raw b) {
  return _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa);
}
IPX_INLINE Raw high_halves(Raw a, Raw b) {
  return _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xaa);
}
IPX_INLINE Raw interleave(const bf16* a, const bf16* b) {
  __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)a));
  __m256i y = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)b));
  return _mm256_or_si256(x, _mm256_slli_epi32(y, 16));
}
IPX_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
IPX_INLINE void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
IPX_INLINE Vec load_n(const float* p, int64_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
IPX_INLINE void store_n(float* p, Vec x, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), x); }
IPX_INLINE Vec load(const bf16* p) {
  return low_half(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)));
}
IPX_INLINE Vec load_n(const bf16* p, int64_t n) {
  if (n >= W) return load(p);
  alignas(16) bf16 part[8] = {};
  for (int64_t i = 0; i < n; i++) part[i] = p[i];
  return load(part);
}
IPX_INLINE __m128i to_bf16(Vec x) {
  Raw u = as_raw(x);
  Raw odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  Raw r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  Vec nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  r = as_raw(_mm256_blendv_ps(as_vec(r), as_vec(_mm256_set1_epi32(0x7fc00000)), nan));
  r = _mm256_srli_epi32(r, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
IPX_INLINE void store(bf16* p, Vec x) { _mm_storeu_si128((__m128i*)p, to_bf16(x)); }
IPX_INLINE void store_n(bf16* p, Vec x, int64_t n) {
  if (n >= W) return store(p, x);
  alignas(16) bf16 part[8];
  store(part, x);
  for (int64_t i = 0; i < n; i++) p[i] = part[i];
}
constexpr bool DOT_PAIRS = false;
IPX_INLINE Vec dot_pairs(Vec c, Raw, Raw) { return c; }
constexpr bool DOT_BYTES = false;
IPX_INLINE Raw dot_bytes(Raw c, Raw w, Raw a) {
  Raw even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)),
                               _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8));
  Raw odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(a, 8));
  return _mm256_add_epi32(c, _mm256_add_epi32(even, odd));
}
IPX_INLINE Raw dot_nibbles(Raw c, Raw w0, Raw a0, Raw w1, Raw a1) {
  Raw words = _mm256_add_epi16(_mm256_maddubs_epi16(w0, a0), _mm256_maddubs_epi16(w1, a1));
  return _mm256_add_epi32(c, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}
IPX_INLINE Raw fp8_pairs(Raw codes) {
  const Raw low = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 0, (char)0x80, (char)0xc0, 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0));
  const Raw high = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0));
  Raw size = _mm256_and_si256(codes, _mm256_set1_epi16(0x7f));
  Raw y = _mm256_add_epi16(_mm256_slli_epi16(size, 4), _mm256_set1_epi16(0x3c00));
  Raw small = _mm256_or_si256(_mm256_shuffle_epi8(low, size),
                              _mm256_shuffle_epi8(high, _mm256_slli_epi16(size, 8)));
  y = _mm256_blendv_epi8(y, small, _mm256_cmpgt_epi16(_mm256_set1_epi16(8), size));
  y = _mm256_blendv_epi8(y, _mm256_set1_epi16(0x7fc0),
                         _mm256_cmpeq_epi16(size, _mm256_set1_epi16(0x7f)));
  return _mm256_or_si256(y, _mm256_slli_epi16(_mm256_xor_si256(codes, size), 8));
}

IPX_INLINE void transpose(Raw (&r)[8]) {
  Raw t[8];
  IPX_UNROLL for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  IPX_UNROLL for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  IPX_UNROLL for (int i = 0; i < 4; i++) t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
  IPX_UNROLL for (int i = 0; i < 4; i++) t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
  IPX_UNROLL for (int i = 0; i < 8; i++) r[i] = t[i];
}
#endif

IPX_INLINE Vec magnitude(Vec x) { return as_vec(raw_and(as_raw(x), raw_set1(0x7fffffff))); }

// largest magnitude of n values, NaN if there is one
template <typename T>
static float largest_of(const T* x, int64_t n) {
  Raw most = raw_zero();
  for (int64_t c = 0; c < n; c += W) most = raw_max(most, as_raw(magnitude(load_n(x + c, n - c))));
  int32_t best = raw_largest(most);
  float out;
  memcpy(&out, &best, 4);
  return out;
}

// 2^f for f in [-0.5, 0.5], 1 exactly at 0: Taylor's polynomial of degree 6, 2 ulp
IPX_INLINE Vec exp2_fraction(Vec f) {
  Vec p = set1(1.5403530e-4f);
  p = fma(p, f, set1(1.3333558e-3f));
  p = fma(p, f, set1(9.6181291e-3f));
  p = fma(p, f, set1(5.5504109e-2f));
  p = fma(p, f, set1(2.4022651e-1f));
  p = fma(p, f, set1(6.9314718e-1f));
  return fma(p, f, set1(1.0f));
}

// 2^x, NaN for NaN, exactly 1 at 0 and exactly 0 below -126 (and at -inf): a masked or empty part
// then changes no bit of what it is merged into.
IPX_INLINE Vec exp2_small(Vec x) {  // x up to 127
  const Vec floor = set1(-126.0f);
  Vec clamped = maximum(floor, x);  // this operand order keeps a NaN
  Vec n = nearest(clamped);
  return zero_below(scale_exponent(exp2_fraction(sub(clamped, n)), n), x, floor);
}
IPX_INLINE Vec exp2_vec(Vec x) { return exp2_small(minimum(set1(127.0f), x)); }
constexpr float LOG2E = 1.44269504088896340736f, LOG2E_REST = 1.92596299e-8f;

// e^x: x * log2(e) in two parts, or the rounding of the product would grow with x
IPX_INLINE Vec exp_vec(Vec x) {
  const Vec floor = set1(-87.0f);
  Vec clamped = maximum(floor, minimum(set1(87.0f), x));
  Vec n = nearest(mul(clamped, set1(LOG2E)));
  Vec f = fma(clamped, set1(LOG2E_REST), fma(clamped, set1(LOG2E), sub(zero(), n)));
  return zero_below(scale_exponent(exp2_fraction(f), n), x, floor);
}

IPX_INLINE float exp2_scalar(float x) {
  float lanes[W];
  store(lanes, exp2_vec(set1(x)));
  return lanes[0];
}

// tanh(x) = 1 - 2 / (e^(2x) + 1): absolute error about 1e-7
IPX_INLINE Vec tanh_vec(Vec x) {
  Vec e = exp_vec(add(x, x));
  return sub(set1(1.0f), divide(set1(2.0f), add(e, set1(1.0f))));
}

}  // namespace IPX_ISA
}  // namespace ipx
