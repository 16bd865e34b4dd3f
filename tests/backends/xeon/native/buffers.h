// Memory of exactly the asked size, and random contents, for programs that run under sanitizers.
//
// A buffer comes from the heap, where AddressSanitizer sees an access beside it, or ends at a page
// that may not be touched, where the processor does: sanitizers do not look into masked loads and
// stores, nor into inline assembly.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

namespace ipx_test {

struct Random {
  uint64_t state;
  uint32_t next() {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((z ^ z >> 31) >> 32);
  }
  int64_t from(int64_t low, int64_t high) { return low + next() % (high - low + 1); }
  bool coin() { return next() & 1; }
  float real() { return static_cast<float>(from(-4096, 4096)) / 1024.0f; }
  template <typename T>
  T pick(std::vector<T> of) { return of[next() % of.size()]; }
};

struct Running {
  const char *where, *what;
  int number;
};
inline Running running = {"", "", 0};

inline void say_where() {
  fprintf(stderr, "in %s %s, case %d\n", running.where, running.what, running.number);
}

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "FAILED: %s ", what);
  say_where();
  _exit(1);
}

constexpr int64_t PAGE = 4096;

class Memory {
 public:
  explicit Memory(bool guarded) : guarded_(guarded) {}
  Memory(const Memory&) = delete;
  ~Memory() {
    for (auto& [at, size] : pages_) munmap(at, size);
    for (void* p : heap_) free(p);
  }
  void* take(int64_t bytes, int64_t alignment = 16) {
    if (!guarded_) {
      void* p = nullptr;
      if (posix_memalign(&p, alignment, bytes)) fail("posix_memalign");
      heap_.push_back(p);
      return p;
    }
    int64_t size = (bytes + PAGE - 1) / PAGE * PAGE + PAGE;
    void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) fail("mmap");
    char* guard = static_cast<char*>(at) + size - PAGE;
    if (mprotect(guard, PAGE, PROT_NONE)) fail("mprotect");
    pages_.push_back({at, size});
    return guard - bytes;
  }

 private:
  bool guarded_;
  std::vector<void*> heap_;
  std::vector<std::pair<void*, int64_t>> pages_;
};

}  // namespace ipx_test
