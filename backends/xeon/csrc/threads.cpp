// Threads and scratch memory of the kernels.
//
// A job is a number of items, of which each thread has a contiguous range. A thread works through
// its own from the front, gives the others a moment, and then takes from the back of theirs. The
// caller never waits for a thread to arrive, only for items that another thread has begun: a worker
// that is asleep, or whose core another process has taken, costs its help and nothing more. (A
// barrier, as OpenMP regions have, then costs a time slice of several milliseconds.) Workers look
// for the next job for about 50 us, longer than the gaps between the kernels of a step, then sleep.
//
// What two cores exchange for a job decides what small jobs cost, so it is two cache lines: the
// job, which the caller writes and every worker reads, and what a worker has finished, which the
// caller reads. A range is one 64-bit word, job number | end | next, in a line of the thread that
// it belongs to. Whoever claims the first item of it in a job, owner or thief, writes it anew from
// the job's number of items. A job ends only when all of its ranges are claimed, so a late worker
// finds a number as new as its own and cannot take an item of a job that is over. The number is
// odd while a job is written, and read again after it, so that nobody sees parts of two jobs.
//
// The system may put a worker on the caller's core and leave it there for long when
// the other cores are in use, too. Then each takes time from the other; so a worker that finds
// itself there moves away, also from a core that it was bound to.
//
// After fork() the child has no workers and simply does all items itself.
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <mutex>

#include "abi.h"

namespace ipx {
namespace {

constexpr int MOST_THREADS = 256;
constexpr int SPINS = 4000;
constexpr int GRACE = 64;              // pauses before taking from others, about a microsecond
constexpr uint32_t NO_ITEM = 0xffffffff;

struct alignas(128) Line {
  std::atomic<uint64_t> word{0};
};

// A set of cores that workers may read at any time
struct Cores {
  std::atomic<uint64_t> words[CPU_SETSIZE / 64] = {};

  cpu_set_t get() const {
    uint64_t copy[CPU_SETSIZE / 64];
    for (int i = 0; i < CPU_SETSIZE / 64; i++) copy[i] = words[i].load(std::memory_order_relaxed);
    cpu_set_t set;
    memcpy(&set, copy, sizeof set);
    return set;
  }
  void put(const cpu_set_t& set) {
    uint64_t copy[CPU_SETSIZE / 64];
    memcpy(copy, &set, sizeof set);
    for (int i = 0; i < CPU_SETSIZE / 64; i++) words[i].store(copy[i], std::memory_order_relaxed);
  }
};
static_assert(sizeof(cpu_set_t) * 8 == CPU_SETSIZE, "a bit for each core");

cpu_set_t own_cores() {  // of the calling thread; none if the system does not tell
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set)) CPU_ZERO(&set);
  return set;
}

struct Pool {
  std::mutex busy;                      // one job at a time; other callers work alone
  std::atomic<int> wanted{1};           // threads, the caller included
  int started = 0;                      // workers
  std::atomic<int> sleeping{0};
  // of the current job:
  alignas(128) std::atomic<uint32_t> job{0};
  std::atomic<uint32_t> items{0};
  std::atomic<int> threads{1};
  std::atomic<int> cpu{-1};             // that its caller ran on when it began
  std::atomic<ItemBody> body{nullptr};
  std::atomic<void*> context{nullptr};
  Cores allowed;                        // of the thread that started the workers, or to bind to
  int bound = 0;                        // workers from 1 to this, exclusive, have a core each
  int core[MOST_THREADS] = {};          // that a worker is bound to
  pthread_t worker[MOST_THREADS] = {};
  Line ranges[MOST_THREADS];
  Line finished[MOST_THREADS];          // job number | items that a worker did
};
Pool pool;

struct Job {
  uint32_t number, items;
  int threads;
  ItemBody body;
  void* context;

  uint32_t bound(int thread) const {
    return static_cast<uint32_t>(static_cast<uint64_t>(items) * thread / threads);
  }
  bool over() const { return pool.job.load(std::memory_order_relaxed) != number; }
};

uint64_t range_word(uint32_t job, uint32_t next, uint32_t end) {
  return static_cast<uint64_t>(job) << 32 | end << 16 | next;
}

uint32_t take(const Job& job, int thread, bool front) {
  Line& range = pool.ranges[thread];
  uint64_t word = range.word.load(std::memory_order_acquire);
  for (;;) {
    uint32_t next = word & 0xffff, end = word >> 16 & 0xffff;
    auto age = static_cast<int32_t>(job.number - static_cast<uint32_t>(word >> 32));
    if (age > 0) {
      next = job.bound(thread);
      end = job.bound(thread + 1);
    }
    if (age < 0 || next >= end) return NO_ITEM;
    uint64_t left = front ? range_word(job.number, next + 1, end)
                          : range_word(job.number, next, end - 1);
    if (range.word.compare_exchange_weak(word, left, std::memory_order_acq_rel)) {
      return front ? next : end - 1;
    }
  }
}

// What the workers have done of a job so far.
uint32_t done_by_others(const Job& job) {
  uint32_t sum = 0;
  for (int t = 1; t < job.threads; t++) {
    uint64_t word = pool.finished[t].word.load(std::memory_order_acquire);
    if (word >> 32 == job.number) sum += static_cast<uint32_t>(word);
  }
  return sum;
}

// All items that thread `me` can get of a job; returns how many it did.
uint32_t work(const Job& job, int me) {
  uint32_t finished = 0;
  auto publish = [&] {
    if (me && finished) {
      pool.finished[me].word.store(static_cast<uint64_t>(job.number) << 32 | finished,
                                   std::memory_order_release);
    }
  };
  for (uint32_t item; (item = take(job, me, true)) != NO_ITEM; finished++) {
    job.body(job.context, item);
  }
  publish();
  for (int spin = 0; spin < GRACE; spin++) {
    if (me ? job.over() : done_by_others(job) + finished == job.items) return finished;
    _mm_pause();
  }
  for (int i = 1; i < job.threads; i++) {
    int other = (me + i) % job.threads;
    for (uint32_t item; (item = take(job, other, false)) != NO_ITEM; finished++) {
      job.body(job.context, item);
    }
  }
  publish();
  return finished;
}

void futex(std::atomic<uint32_t>& word, int operation, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation, value, nullptr, nullptr, 0);
}

// Leaves the caller's core, if the process may use another one.
void move_away(int cpu) {
  cpu_set_t others = pool.allowed.get();
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others)) sched_setaffinity(0, sizeof others, &others);
}

void* worker(void* number) {
  int me = static_cast<int>(reinterpret_cast<intptr_t>(number));
  uint32_t seen = 0;
  for (;;) {
    uint32_t job = pool.job.load(std::memory_order_acquire);
    for (int spin = 0; (job == seen || job % 2) && spin < SPINS; spin++) {
      _mm_pause();
      job = pool.job.load(std::memory_order_acquire);
    }
    if (job % 2) continue;
    if (job == seen) {
      pool.sleeping.fetch_add(1);
      futex(pool.job, FUTEX_WAIT_PRIVATE, seen);
      pool.sleeping.fetch_sub(1);
      continue;
    }
    Job current{job, pool.items.load(std::memory_order_acquire),
                pool.threads.load(std::memory_order_acquire),
                pool.body.load(std::memory_order_acquire),
                pool.context.load(std::memory_order_acquire)};
    int cpu = pool.cpu.load(std::memory_order_acquire);
    if (pool.job.load(std::memory_order_relaxed) != job) continue;  // of two jobs
    seen = job;
    if (me >= current.threads) continue;
    if (sched_getcpu() == cpu) move_away(cpu);
    work(current, me);
  }
  return nullptr;
}

// Gives a worker its core, or all that are allowed. If the system refuses, it stays where it is.
void bind(int number) {
  cpu_set_t cores = pool.allowed.get();
  if (number < pool.bound) {
    CPU_ZERO(&cores);
    CPU_SET(pool.core[number], &cores);
  }
  if (CPU_COUNT(&cores)) pthread_setaffinity_np(pool.worker[number], sizeof cores, &cores);
}

void start_workers(int wanted) {
  if (!pool.started && !pool.bound) pool.allowed.put(own_cores());
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the program's own threads
  while (pool.started < wanted) {
    pthread_t thread;
    auto number = reinterpret_cast<void*>(static_cast<intptr_t>(pool.started + 1));
    if (pthread_create(&thread, nullptr, worker, number)) break;
    pthread_detach(thread);
    pool.worker[++pool.started] = thread;
    if (pool.bound) bind(pool.started);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

struct Scratch {
  void* memory[6] = {};
  int64_t size[6] = {};
  ~Scratch() {
    for (void* p : memory) free(p);
  }
};
thread_local Scratch own;

}  // namespace

void run_parallel(ItemBody body, void* context, int64_t items, bool alone) {
  int wanted = pool.wanted.load(std::memory_order_relaxed);
  int threads = wanted < items ? wanted : static_cast<int>(items);
  if (alone || threads < 2 || items > 0xffff || !pool.busy.try_lock()) {
    for (int64_t i = 0; i < items; i++) body(context, i);
    return;
  }
  if (pool.started < wanted - 1) start_workers(wanted - 1);
  Job job{pool.job.load(std::memory_order_relaxed) + 2, static_cast<uint32_t>(items), threads, body,
          context};
  pool.job.store(job.number - 1, std::memory_order_relaxed);
  pool.items.store(job.items, std::memory_order_release);
  pool.threads.store(threads, std::memory_order_release);
  pool.cpu.store(sched_getcpu(), std::memory_order_release);
  pool.body.store(body, std::memory_order_release);
  pool.context.store(context, std::memory_order_release);
  pool.job.store(job.number);
  if (pool.sleeping.load()) futex(pool.job, FUTEX_WAKE_PRIVATE, threads - 1);
  uint32_t finished = work(job, 0);
  for (int spin = 0; done_by_others(job) + finished < job.items; spin++) {
    if (spin < SPINS) _mm_pause(); else sched_yield();
  }
  pool.busy.unlock();
}

int thread_count() { return pool.wanted; }

void set_thread_count(int n) { pool.wanted = n < 1 ? 1 : n > MOST_THREADS ? MOST_THREADS : n; }

void bind_threads(const int* cpus, int count) {
  std::lock_guard<std::mutex> lock(pool.busy);
  if (!count && !pool.bound) return;
  cpu_set_t cores;
  CPU_ZERO(&cores);
  pool.bound = count < MOST_THREADS ? count : MOST_THREADS;
  for (int i = 0; i < pool.bound; i++) CPU_SET(pool.core[i] = cpus[i], &cores);
  pool.allowed.put(pool.bound ? cores : own_cores());
  for (int number = 1; number <= pool.started; number++) bind(number);
}

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
