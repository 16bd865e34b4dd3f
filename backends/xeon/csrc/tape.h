// A tape: kernel calls recorded once, with the addresses that they had, and replayed by one call.
//
// The kernels here are what a step needs besides the contract's ops: copies, gathers and integer
// arithmetic on a few hundred elements, which torch would do in 1 to 3 us each.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "abi.h"

namespace ipx {

enum Conversion : int64_t { SAME_TYPE = 0, I32_TO_I64 = 1, I64_TO_I32 = 2 };

struct CopyArgs {                        // strides in bytes, outermost first
  const void* source;
  void* target;
  int64_t sizes[4], source_strides[4], target_strides[4];
  int64_t bytes, conversion;             // of an element of the source; Conversion
};

// Blocks of a table at index0[i] * stride0 + index1[i] * stride1 (bytes): gathered into, or
// scattered from, values[i * value_stride].
struct IndexArgs {
  void* table;
  void* values;
  const void* index0;
  const void* index1;                    // or null
  int64_t count, bytes;                  // of a block
  int64_t stride0, stride1, value_stride;
  int64_t wide;                          // indices are int64, else int32
};

enum Arithmetic : int64_t { ADD = 0, SUBTRACT, MULTIPLY, FLOOR_DIVIDE, EQUAL, LESS, CHOOSE };

struct ArithmeticArgs {                  // int32; strides in elements
  const void* condition;                 // bytes, 0 or 1, for CHOOSE
  const int32_t* a;
  const int32_t* b;                      // or null: the scalar
  void* out;                             // int32, or bytes for EQUAL and LESS
  int64_t count, kind;
  int64_t condition_stride, a_stride, b_stride;
  int64_t scalar;
};

int copy_elements(const void* args);
int gather(const void* args);
int scatter(const void* args);
int arithmetic(const void* args);

struct Tape {
  struct Call {
    const char* name;
    Kernel kernel;
    size_t first;                        // of its words
  };
  std::vector<Call> calls;
  std::vector<int64_t> words;

  void add(const char* name, Kernel kernel, const int64_t* given, int64_t count);
  int replay(double* seconds = nullptr) const;  // 0, or the first error; of each call
};

}  // namespace ipx
