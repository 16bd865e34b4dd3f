// One instruction set's table of kernels. Compiled once per set with IPX_ISA naming it.
#include "attention.h"
#include "elementwise.h"
#include "linear.h"
#include "quant_float.h"
#include "quant_linear.h"
#include "quant_pack.h"
#include "sampling.h"

#define IPX_STRING_(x) #x
#define IPX_STRING(x) IPX_STRING_(x)
#define IPX_JOIN_(a, b) a##b
#define IPX_JOIN(a, b) IPX_JOIN_(a, b)

namespace ipx {

const KernelTable* IPX_JOIN(table_, IPX_ISA)() {
  using namespace IPX_ISA;
  static const KernelTable table = {
      IPX_STRING(IPX_ISA), attention,  kv_write,  rope, norm,     glu,   linear, pack,
      quant_linear,        quant_pack, embedding, draw, logprobs, filter};
  return &table;
}

}  // namespace ipx
