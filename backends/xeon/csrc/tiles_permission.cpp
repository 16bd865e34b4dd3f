// Whether this process may use matrix tiles (AMX): the processor has them, the system saves them,
// and has been asked for them, as Linux wants it. The permission holds for all threads.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "abi.h"

namespace ipx {

bool tiles_permitted() {
  constexpr unsigned TILE = 1u << 24, BF16 = 1u << 22, INT8 = 1u << 25;  // leaf 7, edx
  constexpr unsigned OSXSAVE = 1u << 27;                                 // leaf 1, ecx
  constexpr unsigned XTILECFG = 1u << 17, XTILEDATA = 1u << 18;          // xcr0
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((d & (TILE | BF16 | INT8)) != (TILE | BF16 | INT8)) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & (XTILECFG | XTILEDATA)) != (XTILECFG | XTILEDATA)) return false;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

}  // namespace ipx
