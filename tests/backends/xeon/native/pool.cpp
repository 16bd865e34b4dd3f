// The kernels' threads under ThreadSanitizer, and under the two others: every item of a job is done
// once, with any number of threads and callers, whatever the team was told before.
#include <sched.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "abi.h"
#include "buffers.h"

namespace {

using namespace ipx;
using ipx_test::fail;
using ipx_test::Random;

struct Job {
  std::vector<int> done;       // plain words: a second thread at the same item is a race
  std::atomic<int64_t> total{0};
  int64_t input;               // written before, read by every item
};

void body(void* context, int64_t item) {
  auto& job = *static_cast<Job*>(context);
  job.done[item]++;
  auto* words = static_cast<int64_t*>(scratch(item % 4, 64 + item % 5 * 4096));
  words[0] = item;
  job.total.fetch_add(words[0] * job.input, std::memory_order_relaxed);
}

void run(Random& random, int64_t items) {
  Job job;
  job.done.assign(items, 0);
  job.input = random.from(1, 9);
  run_parallel(body, &job, items, random.from(0, 9) == 0);
  int64_t total = 0;
  for (int64_t i = 0; i < items; i++) {  // what other threads wrote is visible without a lock
    if (job.done[i] != 1) fail("an item was not done once");
    total += i * job.input;
  }
  if (job.total.load() != total) fail("the sum of the items is wrong");
}

void caller(uint64_t seed, int jobs) {
  Random random{seed};
  for (int i = 0; i < jobs; i++) {
    run(random, random.pick<int64_t>({0, 1, 2, 3, 7, 16, 61, 300}));
    if (random.from(0, 40) == 0) usleep(200);  // so that workers go to sleep
  }
}

std::vector<int> allowed() {
  cpu_set_t set;
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof set, &set)) fail("sched_getaffinity");
  for (int i = 0; i < CPU_SETSIZE; i++) {
    if (CPU_ISSET(i, &set)) cpus.push_back(i);
  }
  return cpus;
}

}  // namespace

int main(int, char** arguments) {
  int jobs = arguments[1] ? atoi(arguments[1]) : 300;
  std::vector<int> cpus = allowed(), none;
  for (int threads : {2, 1, 3, 7, 2, 5}) {
    set_thread_count(threads);
    if (thread_count() != threads) fail("the number of threads is not what was set");
    std::vector<int> bound;  // some more than there are, all on one, none
    for (int i = 0; i < threads; i++) bound.push_back(cpus[i % cpus.size()]);
    for (const auto& where : {none, bound, std::vector<int>(threads, cpus[0]), none}) {
      bind_threads(where.data(), static_cast<int>(where.size()));
      caller(threads, jobs);
    }
    std::vector<std::thread> callers;  // one of them gets the team, the others work alone
    for (int i = 0; i < 4; i++) callers.emplace_back(caller, 100 + i, jobs);
    for (auto& c : callers) c.join();
  }
  Random random{9};
  for (int64_t items : {65535, 65536, 100000}) run(random, items);
#ifndef __SANITIZE_THREAD__  // which does not follow a fork of a program with threads
  pid_t child = fork();
  if (child == 0) {
    caller(5, 20);
    _exit(0);
  }
  int status = 1;
  if (waitpid(child, &status, 0) != child || status) fail("a forked child did not end well");
#endif
  puts("pool: done");
}
