// Layout and packing of quantized weights (abi.h, QuantLinearArgs), done once when they are loaded.
//
// Moves    the stored weights once, in and out; a block of 48 columns is an item.
#pragma once
#include "abi.h"
#include "simd.h"

namespace ipx {
namespace IPX_ISA {

struct QuantLayout {
  int64_t depth;         // K, rounded up to 8
  int64_t group, groups;
  int64_t scale_bytes;   // of the scales of a block; offsets take as much
  int64_t header;        // bytes before the weights
  int64_t block;         // bytes of a block
};

template <typename Args>
static QuantLayout quant_layout(const Args& p, bool offsets) {
  QuantLayout l;
  l.depth = round_up(p.inputs, 8);
  l.group = p.group ? p.group : l.depth;
  l.groups = ceil_div(p.inputs, l.group);
  l.scale_bytes = l.groups * LINEAR_BLOCK * (p.half_scales ? 2 : 4);
  l.header = round_up(l.scale_bytes * (offsets ? 2 : 1), 64);
  l.block = l.header + l.depth * LINEAR_BLOCK / (p.weight == WEIGHT_INT4 ? 2 : 1);
  return l;
}

// [N, groups] -> [groups][48] of a block
template <typename S>
static void pack_scales(const void* from, void* to, const QuantLayout& l, int64_t column,
                        int64_t width) {
  for (int64_t n = 0; n < width; n++) {
    const S* row = static_cast<const S*>(from) + (column + n) * l.groups;
    for (int64_t g = 0; g < l.groups; g++) static_cast<S*>(to)[g * LINEAR_BLOCK + n] = row[g];
  }
}

static void pack_nibbles(const uint8_t* from, uint8_t* to, int64_t inputs) {
  for (int64_t k = 0; k < inputs; k++) {
    int value = from[k / 2] >> (k % 2 * 4) & 15;
    to[k / 8 * LINEAR_BLOCK * 4 + k % 4] |= static_cast<uint8_t>(value << (k / 4 % 2 * 4));
  }
}

static void pack_bytes(const uint8_t* from, uint8_t* to, int64_t inputs, uint8_t flip) {
  for (int64_t k = 0; k < inputs; k++) to[k / 4 * LINEAR_BLOCK * 4 + k % 4] = from[k] ^ flip;
}

static void quant_pack_body(void* context, int64_t block) {
  const auto& p = *static_cast<const QuantPackArgs*>(context);
  QuantLayout l = quant_layout(p, p.offset);
  char* to = static_cast<char*>(p.packed) + block * l.block;
  memset(to, 0, l.block);
  int64_t column = block * LINEAR_BLOCK, width = min64(LINEAR_BLOCK, p.outputs - column);
  const void* parts[2] = {p.scale, p.offset};
  for (int64_t i = 0; i < (p.offset ? 2 : 1); i++) {
    if (p.half_scales) {
      pack_scales<uint16_t>(parts[i], to + i * l.scale_bytes, l, column, width);
    } else {
      pack_scales<float>(parts[i], to + i * l.scale_bytes, l, column, width);
    }
  }
  for (int64_t n = 0; n < width; n++) {
    auto* w = reinterpret_cast<uint8_t*>(to + l.header) + n * 4;
    if (p.weight == WEIGHT_INT4) {
      pack_nibbles(p.values + (column + n) * (p.inputs / 2), w, p.inputs);
    } else {
      pack_bytes(p.values + (column + n) * p.inputs, w, p.inputs,
                 p.weight == WEIGHT_INT8 ? 128 : 0);
    }
  }
}

static int quant_pack(const void* args) {
  auto* p = static_cast<const QuantPackArgs*>(args);
  run_parallel(quant_pack_body, const_cast<QuantPackArgs*>(p), ceil_div(p->outputs, LINEAR_BLOCK));
  return 0;
}

}  // namespace IPX_ISA
}  // namespace ipx
