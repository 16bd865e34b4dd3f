// Every kernel of every instruction set that the processor runs, over random shapes, in buffers of
// exactly the size that csrc/abi.h gives them. The results are compared only with each other: with
// the items of a job in another order they must be the same bits, and all of them written. Whether
// they are right is for the tests with float64 references.
//
// This file stands in for csrc/threads.cpp: items run in an order that the test chooses, and
// scratch memory has exactly the asked size. With IPX_WITH_POOL it does not: then the kernels of
// one instruction set run on the real threads.
#include <math.h>
#include <sanitizer/common_interface_defs.h>
#include <stddef.h>

#include "abi.h"
#include "buffers.h"

namespace ipx_test {
bool backwards = false;

struct Scratches {  // of one case
  Memory* owner = nullptr;
  char* memory[4] = {};
  int64_t sizes[4] = {};
} scratches;
}  // namespace ipx_test

#ifndef IPX_WITH_POOL
namespace ipx {

void run_parallel(ItemBody body, void* context, int64_t items, bool) {
  for (int64_t i = 0; i < items; i++) body(context, ipx_test::backwards ? items - 1 - i : i);
}
int thread_count() { return 3; }
void set_thread_count(int) {}
void bind_threads(const int*, int) {}

void* scratch(int slot, int64_t bytes) {
  auto& s = ipx_test::scratches;
  if (!s.memory[slot] || s.sizes[slot] < bytes) {
    s.sizes[slot] = (bytes + 63) / 64 * 64;
    s.memory[slot] = static_cast<char*>(s.owner->take(s.sizes[slot], 64));
  }
  return s.memory[slot];
}

}  // namespace ipx
#endif

namespace ipx_test {
namespace {

using namespace ipx;

struct Case {
  Random& random;
  Memory& memory;
  bool f32, strange;  // strange: with values that a broken model can have
  struct Result {
    void* at;
    int64_t bytes, unit;
  };
  std::vector<Result> results;

  int64_t width() const { return f32 ? 4 : 2; }

  template <typename T>
  T* raw(int64_t count) { return static_cast<T*>(memory.take(count * sizeof(T))); }

  void fill(void* at, int64_t count, int64_t bytes) {  // floats or bf16
    for (int64_t i = 0; i < count; i++) {
      float x = random.real();
      if (strange && random.from(0, 99) == 0) {
        x = random.pick<float>({NAN, INFINITY, -INFINITY, 3e38f, -1e-40f});
      }
      uint32_t bits;
      memcpy(&bits, &x, 4);
      if (bytes == 4) memcpy(static_cast<char*>(at) + 4 * i, &bits, 4);
      uint16_t high = static_cast<uint16_t>(bits >> 16);
      if (bytes == 2) memcpy(static_cast<char*>(at) + 2 * i, &high, 2);
    }
  }
  void* values(int64_t count) {
    void* at = memory.take(count * width());
    fill(at, count, width());
    return at;
  }
  float* reals(int64_t count) {
    float* at = raw<float>(count);
    fill(at, count, 4);
    return at;
  }
  uint8_t* bytes(int64_t count) {
    auto* at = raw<uint8_t>(count);
    for (int64_t i = 0; i < count; i++) at[i] = static_cast<uint8_t>(random.next());
    return at;
  }
  int32_t* whole(int64_t count, int64_t low, int64_t high) {
    auto* at = raw<int32_t>(count);
    for (int64_t i = 0; i < count; i++) at[i] = static_cast<int32_t>(random.from(low, high));
    return at;
  }
  void* result(int64_t count, int64_t unit) {  // all ones: a NaN that no kernel makes
    void* at = memory.take(count * unit);
    memset(at, 0xff, count * unit);
    results.push_back({at, count * unit, unit});
    return at;
  }
  void* result(int64_t count) { return result(count, width()); }
  int64_t stride(int64_t least) { return least + random.pick<int64_t>({0, 0, 1, 3, 16}); }
  int64_t span(int64_t rows, int64_t stride, int64_t last) {  // elements of rows so far apart
    return rows ? (rows - 1) * stride + last : 0;
  }
};

bool all_written(const Case::Result& result) {
  for (int64_t i = 0; i < result.bytes; i += result.unit) {
    const char* at = static_cast<char*>(result.at) + i;
    if (!memcmp(at, "\xff\xff\xff\xff", result.unit)) return false;
  }
  return true;
}

// The kernel twice: with its items in order and in reverse, then the same bits. `whole`: every
// value of the results is written, and none is the NaN that was there.
template <typename Args>
void call(Case& c, Kernel kernel, const Args& args, bool whole = true) {
  std::vector<std::vector<char>> first;
  for (bool order : {false, true}) {
    backwards = order;
    if (order) {
      for (auto& r : c.results) memset(r.at, 0xff, r.bytes);
    }
    if (kernel(&args)) fail("a kernel returned an error");
    for (size_t i = 0; i < c.results.size(); i++) {
      auto* at = static_cast<char*>(c.results[i].at);
      int64_t size = c.results[i].bytes;
      if (!order) first.emplace_back(at, at + size);
      if (size && memcmp(first[i].data(), at, size)) fail("another order gives other bits");
    }
  }
  for (auto& r : c.results) {
    if (whole && !all_written(r)) fail("a part of a result is not written");
  }
}

void norm(Case& c, const KernelTable& table) {
  NormArgs p = {};
  p.tokens = c.random.from(0, 9), p.width = c.random.from(1, 150);
  p.x_stride = c.stride(p.width);
  p.x = c.values(c.span(p.tokens, p.x_stride, p.width));
  p.weight = c.values(p.width);
  p.out = c.result(p.tokens * p.width);
  if (c.random.coin()) {
    p.residual = c.values(p.tokens * p.width);
    p.residual_out = c.result(p.tokens * p.width);
  }
  p.eps = 1e-5, p.weight_offset = c.random.coin(), p.cast_before_weight = c.random.coin();
  p.f32 = c.f32;
  call(c, table.norm, p);
}

void glu(Case& c, const KernelTable& table) {
  GluArgs p = {};
  p.tokens = c.random.from(0, 9), p.width = c.random.from(1, 150);
  p.x_stride = c.stride(2 * p.width);
  p.x = c.values(c.span(p.tokens, p.x_stride, 2 * p.width));
  p.out = c.result(p.tokens * p.width);
  p.gelu = c.random.coin(), p.f32 = c.f32;
  call(c, table.glu, p);
}

void embedding(Case& c, const KernelTable& table) {
  EmbeddingArgs p = {};
  int64_t vocab = c.random.from(1, 20);
  p.tokens = c.random.from(0, 9), p.width = c.random.from(1, 150);
  p.weight_stride = c.stride(p.width);
  p.ids = c.whole(p.tokens, 0, vocab - 1);
  p.weight = c.values(c.span(vocab, p.weight_stride, p.width));
  p.out = c.result(p.tokens * p.width);
  p.scale = c.random.coin() ? 1.0 : 2.5, p.f32 = c.f32;
  call(c, table.embedding, p);
}

struct Pages {  // of a KV cache, of either layout
  int64_t pages, page_size, heads, dim, page_stride, token_stride, head_stride;

  Pages(Random& r, int64_t heads_, int64_t dim_) : heads(heads_), dim(dim_) {
    pages = r.from(2, 12), page_size = r.pick<int64_t>({1, 3, 16, 32});
    bool head_major = r.coin();
    token_stride = head_major ? dim : heads * dim;
    head_stride = head_major ? page_size * dim : dim;
    page_stride = page_size * heads * dim;
  }
  int64_t elements() const { return pages * page_stride; }
  template <typename Args>
  void describe(Args& p) const {
    p.page_stride = page_stride, p.token_stride = token_stride, p.head_stride = head_stride;
    p.kv_heads = heads, p.head_dim = dim, p.page_size = page_size;
  }
};

int32_t* slots(Case& c, const Pages& pages, int64_t tokens) {  // each its own
  int64_t all = pages.pages * pages.page_size, first = c.random.from(0, all - tokens);
  auto* slot = c.raw<int32_t>(tokens);
  for (int64_t t = 0; t < tokens; t++) slot[t] = static_cast<int32_t>(first + tokens - 1 - t);
  return slot;
}

void kv_write(Case& c, const KernelTable& table) {
  KvWriteArgs p = {};
  Pages pages(c.random, c.random.from(1, 3), 8 * c.random.from(1, 12));
  pages.describe(p);
  p.tokens = c.random.from(0, pages.pages * pages.page_size < 9 ? 2 : 9);
  p.k_stride = c.stride(pages.heads * pages.dim), p.v_stride = c.stride(pages.heads * pages.dim);
  p.k = c.values(c.span(p.tokens, p.k_stride, pages.heads * pages.dim));
  p.v = c.values(c.span(p.tokens, p.v_stride, pages.heads * pages.dim));
  p.k_cache = c.result(pages.elements());
  p.v_cache = c.result(pages.elements());
  p.slot = slots(c, pages, p.tokens);
  p.f32 = c.f32;
  call(c, table.kv_write, p, false);
}

void rope(Case& c, const KernelTable& table) {
  RopeArgs p = {};
  Pages pages(c.random, c.random.from(1, 3), 8 * c.random.from(1, 32));
  pages.describe(p);
  p.q_heads = pages.heads * c.random.from(1, 3);
  p.rotary_dim = c.random.coin() ? pages.dim : 2 * c.random.from(1, pages.dim / 2);
  p.tokens = c.random.from(0, pages.pages * pages.page_size < 9 ? 2 : 9);
  int64_t length = c.random.from(1, 30), q = p.q_heads * pages.dim, k = pages.heads * pages.dim;
  p.q_stride = c.stride(q), p.q_out_stride = c.stride(q);
  p.k_stride = c.stride(k), p.v_stride = c.stride(k), p.k_out_stride = c.stride(k);
  p.q = c.values(c.span(p.tokens, p.q_stride, q));
  p.k = c.values(c.span(p.tokens, p.k_stride, k));
  p.q_out = c.result(c.span(p.tokens, p.q_out_stride, q));
  bool cache = c.random.coin();
  if (!cache || c.random.coin()) {
    p.k_out = c.result(c.span(p.tokens, p.k_out_stride, k));
  }
  if (cache) {
    p.v = c.values(c.span(p.tokens, p.v_stride, k));
    p.k_cache = c.result(pages.elements());
    p.v_cache = c.result(pages.elements());
    p.slot = slots(c, pages, p.tokens);
  }
  p.cos_sin = c.reals(length * p.rotary_dim);
  p.position = c.whole(p.tokens, 0, length - 1);
  if (c.random.coin()) p.q_norm = c.values(pages.dim), p.k_norm = c.values(pages.dim);
  p.interleaved = c.random.coin(), p.eps = 1e-5, p.weight_offset = c.random.coin();
  p.cast_before_weight = c.random.coin(), p.f32 = c.f32;
  call(c, table.rope, p, false);
}

void linear(Case& c, const KernelTable& table) {
  PackArgs pack = {};
  pack.outputs = c.random.from(1, 150), pack.inputs = c.random.from(1, 150), pack.f32 = c.f32;
  pack.weight_stride = c.stride(pack.inputs);
  pack.weight = c.values(c.span(pack.outputs, pack.weight_stride, pack.inputs));
  int64_t depth = c.f32 ? pack.inputs : (pack.inputs + 1) / 2 * 2;
  pack.packed = c.result((pack.outputs + LINEAR_BLOCK - 1) / LINEAR_BLOCK * depth * LINEAR_BLOCK);
  call(c, table.pack, pack);
  c.results.clear();
  LinearArgs p = {};
  p.rows = c.random.from(0, 20), p.inputs = pack.inputs, p.outputs = pack.outputs;
  p.x_stride = c.stride(p.inputs), p.packed = pack.packed;
  p.x = c.values(c.span(p.rows, p.x_stride, p.inputs));
  if (c.random.coin()) p.bias = c.values(p.outputs);
  p.out_f32 = c.f32 || c.random.coin(), p.softcap = c.random.coin() ? 30.0 : 0.0, p.f32 = c.f32;
  p.out = c.result(p.rows * p.outputs, p.out_f32 ? 4 : 2);
  call(c, table.linear, p);
}

void* scales(Case& c, int64_t count, bool half) {
  if (!half) return c.reals(count);
  auto* at = c.raw<uint16_t>(count);
  for (int64_t i = 0; i < count; i++) at[i] = static_cast<uint16_t>(c.random.from(0x2000, 0x3c00));
  return at;
}

void quantized(Case& c, const KernelTable& table) {
  QuantPackArgs pack = {};
  pack.weight = c.random.from(0, 2), pack.half_scales = c.random.coin();
  bool int4 = pack.weight == WEIGHT_INT4;
  pack.outputs = c.random.from(1, 110), pack.inputs = c.random.from(1, 140);
  if (int4) pack.inputs += pack.inputs % 2;
  pack.group = c.random.pick<int64_t>({0, 8, 16, 24, 32, 64});
  if (pack.group >= pack.inputs) pack.group = 0;
  int64_t depth = (pack.inputs + 7) / 8 * 8, group = pack.group ? pack.group : depth;
  int64_t groups = (pack.inputs + group - 1) / group;
  bool offsets = pack.weight != WEIGHT_FP8 && c.random.coin();
  pack.values = c.bytes(pack.outputs * pack.inputs / (int4 ? 2 : 1));
  pack.scale = scales(c, pack.outputs * groups, pack.half_scales);
  if (offsets) pack.offset = scales(c, pack.outputs * groups, pack.half_scales);
  int64_t head = LINEAR_BLOCK * (pack.half_scales ? 2 : 4) * (offsets ? 2 : 1);
  int64_t block = (groups * head + depth * LINEAR_BLOCK / (int4 ? 2 : 1) + 63) / 64 * 64;
  pack.packed = c.result((pack.outputs + LINEAR_BLOCK - 1) / LINEAR_BLOCK * block, 1);
  call(c, table.quant_pack, pack, false);
  c.results.clear();
  QuantLinearArgs p = {};
  p.rows = c.random.from(0, 20), p.inputs = pack.inputs, p.outputs = pack.outputs;
  p.x_stride = c.stride(p.inputs), p.packed = pack.packed;
  p.x = c.values(c.span(p.rows, p.x_stride, p.inputs));
  if (c.random.coin()) p.bias = c.values(p.outputs);
  p.weight = pack.weight, p.group = pack.group, p.half_scales = pack.half_scales;
  p.input = c.random.pick<int64_t>({INPUT_AS_IT_IS, INPUT_INT8, INPUT_FP8});
  if (p.weight == WEIGHT_FP8 && p.input == INPUT_INT8) p.input = INPUT_FP8;
  if (p.input != INPUT_AS_IT_IS && c.random.coin()) {
    auto* given = c.raw<float>(1);
    *given = 0.05f;
    p.input_scale = given;
  }
  p.input_group = c.random.coin() || !p.group ? 0 : p.group * c.random.from(1, 3);
  p.offsets = offsets, p.unit = c.random.coin() ? 1.0 : 0.25, p.f32 = c.f32;
  p.out_f32 = c.f32 || c.random.coin(), p.softcap = c.random.coin() ? 30.0 : 0.0;
  p.out = c.result(p.rows * p.outputs, p.out_f32 ? 4 : 2);
  call(c, table.quant_linear, p, p.weight != WEIGHT_FP8);  // which has a NaN among its codes
}

void attention(Case& c, const KernelTable& table) {
  AttentionArgs p = {};
  Pages pages(c.random, c.random.from(1, 3), 8 * c.random.from(1, c.random.coin() ? 9 : 32));
  pages.describe(p);
  p.q_heads = pages.heads * c.random.pick<int64_t>({1, 2, 3, 7});
  p.sequences = c.random.from(0, 5);
  int64_t longest = c.random.coin() ? 40 : 700, columns = (longest + 8) / pages.page_size + 1;
  auto* seq_len = c.raw<int32_t>(p.sequences);
  auto* q_start = c.raw<int32_t>(p.sequences + 1);
  q_start[0] = 0;
  for (int64_t b = 0; b < p.sequences; b++) {
    int64_t queries = c.random.coin() ? 1 : c.random.from(1, 40);
    q_start[b + 1] = q_start[b] + static_cast<int32_t>(queries);
    bool padding = c.random.from(0, 7) == 0;  // a row of zeros
    int64_t before = c.random.from(0, longest - 40 > 0 ? longest - 40 : 0);
    seq_len[b] = static_cast<int32_t>(padding ? 0 : queries + before);
  }
  p.tokens = q_start[p.sequences] + c.random.from(0, 3);
  p.table_stride = c.stride(columns);
  p.page_table = c.whole(c.span(p.sequences, p.table_stride, columns), 0, pages.pages - 1);
  p.seq_len = seq_len, p.q_start = q_start;
  int64_t q = p.q_heads * pages.dim;
  p.q_stride = c.stride(q);
  p.q = c.values(c.span(p.tokens, p.q_stride, q));
  p.k = c.values(pages.elements()), p.v = c.values(pages.elements());
  p.out = c.result(p.tokens * q);
  if (c.random.coin()) p.sinks = c.reals(p.q_heads);
  p.window = c.random.pick<int64_t>({0, 0, 1, 7, 300}), p.scale = 0.2;
  p.softcap = c.random.coin() ? 50.0 : 0.0, p.f32 = c.f32;
  call(c, table.attention, p);
}

void draw(Case& c, const KernelTable& table) {
  DrawArgs p = {};
  p.rows = c.random.from(0, 5), p.vocab = c.random.from(1, c.random.coin() ? 200 : 3000);
  auto* logits = c.reals(p.rows * p.vocab);
  for (int64_t i = 0; i < p.rows * p.vocab; i += c.random.from(1, 40)) {  // never a whole row
    if (i % p.vocab) logits[i] = -INFINITY;
  }
  auto *temperature = c.raw<float>(p.rows), *top_p = c.raw<float>(p.rows);
  auto* min_p = c.raw<float>(p.rows);
  auto* top_k = c.whole(p.rows, 0, 3);
  p.greedy = c.random.from(0, 4) == 0, p.unfiltered = !p.greedy && c.random.coin();
  for (int64_t r = 0; r < p.rows; r++) {
    temperature[r] = p.greedy ? 0.0f : c.random.pick<float>({0.0f, 0.5f, 1.0f, 3.0f});
    top_p[r] = p.unfiltered ? 1.0f : c.random.pick<float>({0.0f, 0.1f, 0.9f, 1.0f});
    min_p[r] = p.unfiltered ? 0.0f : c.random.pick<float>({0.0f, 0.1f, 1.0f});
    int64_t many = c.random.from(1, 2 * p.vocab);
    top_k[r] = p.unfiltered ? 0 : top_k[r] > 1 ? static_cast<int32_t>(many) : top_k[r];
  }
  p.logits = logits, p.temperature = temperature, p.top_k = top_k, p.top_p = top_p;
  p.min_p = min_p;
  p.seed = reinterpret_cast<uint32_t*>(c.whole(2 * p.rows, -1000, 1000));
  p.sample_index = reinterpret_cast<uint32_t*>(c.whole(p.rows, 0, 3));
  p.position = reinterpret_cast<uint32_t*>(c.whole(p.rows, 0, 1000));
  if (c.random.coin()) {
    p.bitmask = reinterpret_cast<uint32_t*>(
        c.whole(p.rows * ((p.vocab + 31) / 32), -(1 << 30), 1 << 30));
  }
  p.tokens = static_cast<int32_t*>(c.result(p.rows, 4));
  call(c, table.draw, p, false);
  for (int64_t r = 0; r < p.rows; r++) {
    if (p.tokens[r] < 0 || p.tokens[r] >= p.vocab) fail("a token is not of the vocabulary");
  }
}

void logprobs(Case& c, const KernelTable& table) {
  LogprobArgs p = {};
  p.rows = c.random.from(0, 5), p.vocab = c.random.from(1, c.random.coin() ? 200 : 3000);
  p.top = c.random.from(0, p.vocab < 20 ? p.vocab : 20);
  p.logits = c.reals(p.rows * p.vocab);
  p.ids = c.whole(p.rows, 0, p.vocab - 1);
  p.logprob = static_cast<float*>(c.result(p.rows, 4));
  p.rank = static_cast<int32_t*>(c.result(p.rows, 4));
  p.top_ids = static_cast<int32_t*>(c.result(p.rows * p.top, 4));
  p.top_logprobs = static_cast<float*>(c.result(p.rows * p.top, 4));
  call(c, table.logprobs, p);
}

void filter(Case& c, const KernelTable& table) {
  FilterArgs p = {};
  p.rows = c.random.from(0, 5), p.vocab = c.random.from(1, c.random.coin() ? 200 : 3000);
  p.logits = c.reals(p.rows * p.vocab);
  if (c.random.coin()) {
    p.counts = c.whole(p.rows * p.vocab, 0, 2);
    auto* seen = c.bytes(p.rows * p.vocab);
    for (int64_t i = 0; i < p.rows * p.vocab; i++) seen[i] &= 1;
    p.in_prompt = seen;
    p.repetition = c.reals(p.rows), p.frequency = c.reals(p.rows), p.presence = c.reals(p.rows);
  }
  if (c.random.coin()) p.bias = c.reals(p.rows * p.vocab);
  if (c.random.coin()) {
    p.most_banned = c.random.from(0, 4);
    p.banned = c.whole(p.rows * p.most_banned, 0, p.vocab);
  }
  if (c.random.coin()) {
    p.bitmask = reinterpret_cast<uint32_t*>(c.whole(p.rows * ((p.vocab + 31) / 32), -(1 << 30),
                                                    1 << 30));
  }
  p.out = static_cast<float*>(c.result(p.rows * p.vocab, 4));
  call(c, table.filter, p);
}

struct Test {
  const char* name;
  void (*run)(Case&, const KernelTable&);
  int share;  // of the cases: attention has the most shapes
};
const Test TESTS[] = {{"norm", norm, 1},           {"glu", glu, 1},
                      {"embedding", embedding, 1}, {"kv_write", kv_write, 1},
                      {"rope", rope, 2},           {"linear", linear, 2},
                      {"quantized", quantized, 6}, {"attention", attention, 3},
                      {"draw", draw, 2},           {"logprobs", logprobs, 1},
                      {"filter", filter, 1}};

struct Set {
  const KernelTable* table;
  bool runs;  // on this processor
};

std::vector<Set> sets() {
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  std::vector<Set> found = {{table_avx2(), avx2}};
#ifndef IPX_WITH_POOL
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  found.push_back({table_avx512(), avx512});
  found.push_back({table_avx512_vnni(), vnni});
  found.push_back({table_avx512_bf16(), vnni && __builtin_cpu_supports("avx512bf16")});
  found.push_back({table_amx_emulated(), vnni && __builtin_cpu_supports("avx512bf16")});
#endif
  return found;
}

}  // namespace
}  // namespace ipx_test

int main(int, char** arguments) {
  using namespace ipx_test;
  int cases = arguments[1] ? atoi(arguments[1]) : 20;
  __sanitizer_set_death_callback(say_where);
  ipx::set_thread_count(3);
  for (auto [table, runs] : sets()) {
    if (!runs) {
      printf("%s: skipped, the processor does not run it\n", table->isa);
      continue;
    }
    for (const Test& test : TESTS) {
      for (int i = 0; i < cases * test.share; i++) {
        Random random{static_cast<uint64_t>(i)};
        Memory memory(i % 2), own(i / 2 % 2);
        scratches = Scratches{};
        scratches.owner = &own;
        Case c{random, memory, i / 4 % 2 == 1, i % 5 == 4, {}};
        running = {table->isa, test.name, i};
        test.run(c, *table);
      }
    }
    printf("%s: done\n", table->isa);
  }
}
