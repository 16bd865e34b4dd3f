// The C ABI of the kernels: each takes one pointer to a struct whose fields are all 8 bytes wide
// (address, int64 or double), so that a call can be passed on, stored and replayed as an array of
// words. Strides count elements. `f32` says that activations are float32; otherwise bfloat16.
//
// A kernel knows nothing of tensors, allocates no results and keeps no state between calls except
// grow-only scratch memory. Arguments are checked by the Python wrapper.
#pragma once
#include <stdint.h>

namespace ipx {

struct AttentionArgs {
  const void* q;                         // [T, Hq, D], tokens q_stride apart
  const void* k;                         // pages of keys, see the three strides
  const void* v;                         // pages of values, same strides
  void* out;                             // [T, Hq, D] contiguous
  const int32_t* page_table;             // [B, P], rows table_stride apart
  const int32_t* seq_len;                // [B] tokens in the cache, those of this step included
  const int32_t* q_start;                // [B + 1]
  const float* sinks;                    // [Hq] or null
  int64_t tokens, sequences;             // T and B, padded
  int64_t q_stride, table_stride;
  int64_t page_stride, token_stride, head_stride;
  int64_t q_heads, kv_heads, head_dim, page_size;
  int64_t window;                        // 0: none
  double scale, softcap;                 // softcap 0: none
  int64_t f32;
  int64_t kv_int8;                       // pages are int8: rows of D codes and a float32 scale
};

struct KvWriteArgs {
  const void* k;                         // [T, Hkv, D], tokens k_stride apart
  const void* v;
  void* k_cache;
  void* v_cache;
  const int32_t* slot;                   // [T] page * page_size + offset
  int64_t tokens, k_stride, v_stride;
  int64_t page_stride, token_stride, head_stride;
  int64_t kv_heads, head_dim, page_size, f32;
  int64_t kv_int8;
};

struct RopeArgs {                        // optional qk-norm, rotation, optional KV write
  const void* q;                         // [T, Hq, D]
  const void* k;                         // [T, Hkv, D]
  const void* v;                         // [T, Hkv, D]; unused without caches
  void* q_out;                           // [T, Hq, D], may be q
  void* k_out;                           // [T, Hkv, D] or null: do not store it
  void* k_cache;                         // null: no KV write
  void* v_cache;
  const float* cos_sin;                  // [Lmax, rotary_dim]: cosines, then sines
  const int32_t* position;               // [T]
  const int32_t* slot;                   // [T]
  const void* q_norm;                    // [D] weights or null
  const void* k_norm;
  int64_t tokens, q_stride, k_stride, v_stride, q_out_stride, k_out_stride;
  int64_t page_stride, token_stride, head_stride;
  int64_t q_heads, kv_heads, head_dim, rotary_dim, page_size;
  int64_t interleaved;                   // 1: gptj pairs (2i, 2i+1); 0: neox pairs (i, i + R/2)
  double eps, weight_offset;
  int64_t cast_before_weight, f32;
  int64_t kv_int8;
};

struct NormArgs {
  const void* x;                         // [T, d], rows x_stride apart
  const void* residual;                  // null, or [T, d] contiguous: added before the norm
  const void* weight;                    // [d]
  void* out;                             // [T, d] contiguous
  void* residual_out;                    // [T, d] contiguous: x + residual; may be residual
  int64_t tokens, width, x_stride;
  double eps, weight_offset;             // weight_offset 1: Gemma
  int64_t cast_before_weight;            // round the normalized value before the weight (Llama)
  int64_t f32;
};

struct GluArgs {
  const void* x;                         // [T, 2F]: gate, then up
  void* out;                             // [T, F]
  int64_t tokens, width, x_stride;       // width F
  int64_t gelu;                          // 0 silu, 1 gelu with tanh
  int64_t f32;
};

// Gated products: out[m, n] = act(gate[m, n]) * up[m, n], [M, N], where blocks of packed columns
// are N's gates and ups in turns. No bias, softcap or float32 results.
enum GluKind : int64_t { GLU_NONE = 0, GLU_SILU = 1, GLU_GELU = 2 };

struct LinearArgs {
  const void* x;                         // [M, K], rows x_stride apart
  const void* packed;                    // from PackArgs
  const void* bias;                      // [N] or null
  void* out;                             // [M, N] contiguous
  int64_t rows, inputs, outputs, x_stride;
  int64_t out_f32;                       // write float32 whatever x is (logits)
  double softcap;                        // 0: none
  int64_t f32;
  int64_t glu;                           // GluKind
};

struct PackArgs {
  const void* weight;                    // [N, K], rows weight_stride apart
  void* packed;                          // packed_elements(N, K) values
  int64_t outputs, inputs, weight_stride, f32;
};

// Quantized weights [N, K], W = scale (q - 128) + offset (int8), scale (q - 8) + offset (int4) or
// scale q (fp8, e4m3), of stored q without sign. Packed: blocks of LINEAR_BLOCK columns, each
// groups of inputs: [48] scales, [48] offsets if any, then [inputs/4][48][4] bytes or, int4,
// [inputs/8][48][4] with inputs 8i + j low and 8i + 4 + j high in byte j. The four bytes of fp8
// are inputs 0, 2, 1 and 3. A block ends at a multiple of 64 bytes.
// K is rounded up to a multiple of 8. A group has `group` inputs, a multiple of 8 if it is not
// all of K.
enum WeightKind : int64_t { WEIGHT_INT8 = 0, WEIGHT_INT4 = 1, WEIGHT_FP8 = 2 };
enum InputKind : int64_t { INPUT_AS_IT_IS = 0, INPUT_INT8 = 1, INPUT_FP8 = 2 };

struct QuantLinearArgs {
  const void* x;                         // [M, K], rows x_stride apart
  const void* packed;                    // from QuantPackArgs
  const void* bias;                      // [N] or null
  void* out;                             // [M, N] contiguous
  const float* input_scale;              // [1], or null: from each row's largest magnitude
  int64_t rows, inputs, outputs, x_stride;
  int64_t weight, input;                 // WeightKind, InputKind
  int64_t group, input_group;            // inputs of a weight's, of an input's scale; 0: all.
                                         // input_group is 0 or a multiple of group
  int64_t offsets, half_scales;          // there are offsets; both are float16, else float32
  double unit;                           // times which scales and offsets are to be taken
  int64_t out_f32;
  double softcap;
  int64_t f32;
  int64_t glu;                           // GluKind
};

struct QuantPackArgs {
  const uint8_t* values;                 // [N, K] bytes, or int4 [N, K/2], contiguous
  const void* scale;                     // [N, groups], of the packed type
  const void* offset;                    // the same, or null
  void* packed;
  int64_t outputs, inputs, weight, group, half_scales;
};

struct EmbeddingArgs {
  const int32_t* ids;                    // [T]
  const void* weight;                    // [V, d], rows weight_stride apart
  void* out;                             // [T, d] contiguous
  int64_t tokens, width, weight_stride;
  double scale;                          // of f32's type
  int64_t f32;
};

// Sampling: rows of float32 logits, [N, V] contiguous. All other arrays have one entry per row.
struct DrawArgs {
  const float* logits;
  const float* temperature;              // 0: the largest logit
  const int32_t* top_k;                  // 0: all
  const float* top_p;                    // 1: all
  const float* min_p;
  const uint32_t* seed;                  // [N, 2]: low, high
  const uint32_t* sample_index;
  const uint32_t* position;
  int32_t* tokens;                       // result
  int64_t rows, vocab;
  int64_t greedy, unfiltered;            // promises: all temperatures are 0; nothing is filtered
  const uint32_t* bitmask;               // [N, ceil(V / 32)] or null: tokens whose bit is set exist
};

struct LogprobArgs {
  const float* logits;
  const int32_t* ids;
  float* logprob;                        // results: of ids
  int32_t* rank;
  int32_t* top_ids;                      // [N, top]
  float* top_logprobs;                   // [N, top]
  int64_t rows, vocab, top;
};

struct FilterArgs {                      // every input but logits may be null
  const float* logits;
  const int32_t* counts;                 // [N, V]; with the four that follow
  const uint8_t* in_prompt;              // [N, V]
  const float* repetition;
  const float* frequency;
  const float* presence;
  const float* bias;                     // [N, V]
  const int32_t* banned;                 // [N, K] token ids, V for none
  const uint32_t* bitmask;               // [N, ceil(V / 32)]: keeps the tokens whose bit is set
  float* out;                            // [N, V]
  int64_t rows, vocab, most_banned;
};

constexpr int64_t LINEAR_BLOCK = 48;     // columns of a packed block: 3 AVX-512 registers

using Kernel = int (*)(const void* args);  // 0, or an errno value (out of memory)

struct KernelTable {
  const char* isa;
  Kernel attention, kv_write, rope, norm, glu, linear, pack, quant_linear, quant_pack, embedding,
      draw, logprobs, filter;
};

const KernelTable* table_avx2();
const KernelTable* table_avx512();
const KernelTable* table_avx512_vnni();
const KernelTable* table_avx512_bf16();
const KernelTable* table_amx();
const KernelTable* table_amx_emulated();  // the same, without its instructions: for tests

// tiles_permission.cpp: this process may use AMX
bool tiles_permitted();

// threads.cpp: calls body(context, i) for each i in [0, items), on several threads unless `alone`;
// at most 65535 items are divided. Nothing may depend on which thread does what.
using ItemBody = void (*)(void* context, int64_t item);
void run_parallel(ItemBody body, void* context, int64_t items, bool alone = false);
int thread_count();
void set_thread_count(int n);
// Binds worker i to cpus[i] and names the caller's, cpus[0]; count 0: workers go where the system
// puts them.
void bind_threads(const int* cpus, int count);
// 64-byte aligned scratch of the calling thread, at least `bytes`; slots are independent. Null
// when memory is exhausted. Contents survive until the next request for the slot.
void* scratch(int slot, int64_t bytes);

}  // namespace ipx
