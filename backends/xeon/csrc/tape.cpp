#include "tape.h"

#include <string.h>

#include <chrono>

namespace ipx {
namespace {

constexpr int64_t CHUNK = 1 << 16;  // bytes of a large copy that one item moves

struct Contiguous {
  char* target;
  const char* source;
  int64_t bytes;
};

void copy_chunk(void* context, int64_t item) {
  auto& copy = *static_cast<Contiguous*>(context);
  int64_t first = item * CHUNK, left = copy.bytes - first;
  auto bytes = static_cast<size_t>(left < CHUNK ? left : CHUNK);
  memcpy(copy.target + first, copy.source + first, bytes);
}

void copy_row(const CopyArgs& a, const char* source, char* target) {
  int64_t count = a.sizes[3], from = a.source_strides[3], to = a.target_strides[3];
  if (a.conversion == I32_TO_I64) {
    for (int64_t i = 0; i < count; i++) {
      int64_t value = *reinterpret_cast<const int32_t*>(source + i * from);
      memcpy(target + i * to, &value, 8);
    }
  } else if (a.conversion == I64_TO_I32) {
    for (int64_t i = 0; i < count; i++) {
      auto value = static_cast<int32_t>(*reinterpret_cast<const int64_t*>(source + i * from));
      memcpy(target + i * to, &value, 4);
    }
  } else if (from == a.bytes && to == a.bytes) {
    memcpy(target, source, static_cast<size_t>(count * a.bytes));
  } else {
    for (int64_t i = 0; i < count; i++) {
      memcpy(target + i * to, source + i * from, static_cast<size_t>(a.bytes));
    }
  }
}

bool contiguous(const CopyArgs& a) {
  int64_t expected = a.bytes;
  for (int d = 3; d >= 0; d--) {
    if (a.sizes[d] != 1 && (a.source_strides[d] != expected || a.target_strides[d] != expected)) {
      return false;
    }
    expected *= a.sizes[d];
  }
  return true;
}

int64_t index_at(const void* index, int64_t i, bool wide) {
  return wide ? static_cast<const int64_t*>(index)[i] : static_cast<const int32_t*>(index)[i];
}

template <bool GATHER>
int move_blocks(const IndexArgs& a) {
  for (int64_t i = 0; i < a.count; i++) {
    int64_t at = index_at(a.index0, i, a.wide) * a.stride0;
    if (a.index1) at += index_at(a.index1, i, a.wide) * a.stride1;
    char* block = static_cast<char*>(a.table) + at;
    char* value = static_cast<char*>(a.values) + i * a.value_stride;
    memcpy(GATHER ? value : block, GATHER ? block : value, static_cast<size_t>(a.bytes));
  }
  return 0;
}

int32_t floor_divide(int32_t a, int32_t b) {
  if (b == 0) return 0;  // of padding; the caller's rows have divisors
  int32_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

}  // namespace

int copy_elements(const void* args) {
  auto& a = *static_cast<const CopyArgs*>(args);
  auto source = static_cast<const char*>(a.source);
  auto target = static_cast<char*>(a.target);
  if (a.conversion == SAME_TYPE && contiguous(a)) {
    Contiguous whole{target, source, a.bytes};
    for (int64_t size : a.sizes) whole.bytes *= size;
    run_parallel(copy_chunk, &whole, (whole.bytes + CHUNK - 1) / CHUNK);
    return 0;
  }
  for (int64_t i = 0; i < a.sizes[0]; i++) {
    for (int64_t j = 0; j < a.sizes[1]; j++) {
      for (int64_t k = 0; k < a.sizes[2]; k++) {
        auto offset = [&](const int64_t* s) { return i * s[0] + j * s[1] + k * s[2]; };
        copy_row(a, source + offset(a.source_strides), target + offset(a.target_strides));
      }
    }
  }
  return 0;
}

int gather(const void* args) { return move_blocks<true>(*static_cast<const IndexArgs*>(args)); }

int scatter(const void* args) { return move_blocks<false>(*static_cast<const IndexArgs*>(args)); }

int arithmetic(const void* args) {
  auto& x = *static_cast<const ArithmeticArgs*>(args);
  auto condition = static_cast<const uint8_t*>(x.condition);
  auto numbers = static_cast<int32_t*>(x.out);
  auto truths = static_cast<uint8_t*>(x.out);
  for (int64_t i = 0; i < x.count; i++) {
    int32_t a = x.a[i * x.a_stride];
    int32_t b = x.b ? x.b[i * x.b_stride] : static_cast<int32_t>(x.scalar);
    switch (x.kind) {
      case ADD: numbers[i] = static_cast<int32_t>(static_cast<uint32_t>(a) + b); break;
      case SUBTRACT: numbers[i] = static_cast<int32_t>(static_cast<uint32_t>(a) - b); break;
      case MULTIPLY: numbers[i] = static_cast<int32_t>(static_cast<uint32_t>(a) * b); break;
      case FLOOR_DIVIDE: numbers[i] = floor_divide(a, b); break;
      case EQUAL: truths[i] = a == b; break;
      case LESS: truths[i] = a < b; break;
      default: numbers[i] = condition[i * x.condition_stride] ? a : b;
    }
  }
  return 0;
}

void Tape::add(const char* name, Kernel kernel, const int64_t* given, int64_t count) {
  calls.push_back({name, kernel, words.size()});
  words.insert(words.end(), given, given + count);
}

int Tape::replay(double* seconds) const {
  using Clock = std::chrono::steady_clock;
  for (const Call& call : calls) {
    Clock::time_point begin;
    if (seconds) begin = Clock::now();
    if (int error = call.kernel(words.data() + call.first)) return error;
    if (seconds) *seconds++ = std::chrono::duration<double>(Clock::now() - begin).count();
  }
  return 0;
}

}  // namespace ipx
