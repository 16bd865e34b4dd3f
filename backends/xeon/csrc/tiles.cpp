// A table of kernels in which products of matrices, those of attention too, run on tiles;
// everything else is that of avx512_bf16.
// Compiled twice, with IPX_ISA naming it: amx, and amx_emulated for tests.
#include "attention.h"
#include "linear.h"
#include "quant_linear.h"

#define IPX_STRING_(x) #x
#define IPX_STRING(x) IPX_STRING_(x)
#define IPX_JOIN_(a, b) a##b
#define IPX_JOIN(a, b) IPX_JOIN_(a, b)

namespace ipx {

const KernelTable* IPX_JOIN(table_, IPX_ISA)() {
  static KernelTable table;
  table = *table_avx512_bf16();
  table.isa = IPX_STRING(IPX_ISA);
  table.attention = IPX_ISA::attention;
  table.linear = IPX_ISA::linear;
  table.pack = IPX_ISA::pack;
  table.quant_linear = IPX_ISA::quant_linear;
  table.quant_pack = IPX_ISA::quant_pack;
  return &table;
}

}  // namespace ipx
