// Threads and scratch memory of the kernels.
//
// torch computes on an OpenMP team whose workers spin after each region. A second pool would fight
// with them for the same cores, so the kernels run on that very team: torch puts its OpenMP
// runtime into the global symbol scope, and GOMP_parallel, which GNU's and LLVM's runtimes both
// offer, is looked up there. Without one the kernels run on the calling thread.
#include <dlfcn.h>
#include <stdlib.h>

#include "abi.h"

namespace ipx {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using ThreadNumber = int (*)();

struct Runtime {
  GompParallel parallel = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  ThreadNumber number = reinterpret_cast<ThreadNumber>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
  ThreadNumber team = reinterpret_cast<ThreadNumber>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
  bool usable() const { return parallel && number && team; }
};

const Runtime& runtime() {
  static const Runtime found;
  return found;
}

int wanted_threads = 1;

struct Region {
  Body body;
  void* context;
};

void enter(void* region) {
  auto* r = static_cast<Region*>(region);
  r->body(r->context, runtime().number(), runtime().team());
}

struct Scratch {
  void* memory[4] = {};
  int64_t size[4] = {};
  ~Scratch() {
    for (void* p : memory) free(p);
  }
};
thread_local Scratch own;

}  // namespace

void run_parallel(Body body, void* context, int64_t useful_threads) {
  int64_t n = wanted_threads < useful_threads ? wanted_threads : useful_threads;
  if (n <= 1) return body(context, 0, 1);
  Region region{body, context};
  runtime().parallel(enter, &region, static_cast<unsigned>(n), 0);
}

int thread_count() { return wanted_threads; }

void set_thread_count(int n) { wanted_threads = n > 1 && runtime().usable() ? n : 1; }

void* scratch(int slot, int64_t bytes) {
  if (own.size[slot] < bytes) {
    free(own.memory[slot]);
    int64_t rounded = (bytes + 4095) / 4096 * 4096;
    own.memory[slot] = aligned_alloc(64, static_cast<size_t>(rounded));
    own.size[slot] = own.memory[slot] ? rounded : 0;
  }
  return own.memory[slot];
}

}  // namespace ipx
