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
  int64_t scales;        // bytes of a group's scales; offsets take as much
  int64_t head;          // bytes before a group's weights
  int64_t stride;        // bytes from group to group
  int64_t block;         // bytes of a block
};

template <typename Args>
static QuantLayout quant_layout(const Args& p, bool offsets) {
  QuantLayout l;
  l.depth = round_up(p.inputs, 8);
  l.group = p.group ? p.group : l.depth;
  l.groups = ceil_div(p.inputs, l.group);
  l.scales = LINEAR_BLOCK * (p.half_scales ? 2 : 4);
  l.head = l.scales * (offsets ? 2 : 1);
  int64_t values = p.weight == WEIGHT_INT4 ? 2 : 1;  // in a byte
  l.stride = l.head + l.group * LINEAR_BLOCK / values;
  l.block = round_up(l.groups * l.head + l.depth * LINEAR_BLOCK / values, 64);
  return l;
}

// a group of [N, groups] -> [48]
template <typename S>
static void pack_scales(const void* from, void* to, const QuantLayout& l, int64_t width) {
  for (int64_t n = 0; n < width; n++) {
    static_cast<S*>(to)[n] = static_cast<const S*>(from)[n * l.groups];
  }
}

static void pack_nibbles(const uint8_t* from, uint8_t* to, int64_t inputs) {
  for (int64_t k = 0; k < inputs; k++) {
    int value = from[k / 2] >> (k % 2 * 4) & 15;
    to[k / 8 * LINEAR_BLOCK * 4 + k % 4] |= static_cast<uint8_t>(value << (k / 4 % 2 * 4));
  }
}

static void pack_bytes(const uint8_t* from, uint8_t* to, int64_t inputs) {
  for (int64_t k = 0; k < inputs; k++) to[k / 4 * LINEAR_BLOCK * 4 + k % 4] = from[k] ^ 128;
}

static void pack_fp8(const uint8_t* from, uint8_t* to, int64_t inputs) {
  static const int PLACE[4] = {0, 2, 1, 3};
  for (int64_t k = 0; k < inputs; k++) to[k / 4 * LINEAR_BLOCK * 4 + PLACE[k % 4]] = from[k];
}

static void quant_pack_body(void* context, int64_t block) {
  const auto& p = *static_cast<const QuantPackArgs*>(context);
  QuantLayout l = quant_layout(p, p.offset);
  const bool int4 = p.weight == WEIGHT_INT4;
  const int64_t column = block * LINEAR_BLOCK, width = min64(LINEAR_BLOCK, p.outputs - column);
  const int64_t row_bytes = int4 ? p.inputs / 2 : p.inputs;
  char* to = static_cast<char*>(p.packed) + block * l.block;
  memset(to, 0, l.block);
  for (int64_t g = 0; g < l.groups; g++, to += l.stride) {
    const void* parts[2] = {p.scale, p.offset};
    for (int64_t i = 0; i < (p.offset ? 2 : 1); i++) {
      const char* from = static_cast<const char*>(parts[i]) +
                         (column * l.groups + g) * (p.half_scales ? 2 : 4);
      if (p.half_scales) {
        pack_scales<uint16_t>(from, to + i * l.scales, l, width);
      } else {
        pack_scales<float>(from, to + i * l.scales, l, width);
      }
    }
    int64_t k = g * l.group, inputs = min64(l.group, p.inputs - k);
    for (int64_t n = 0; n < width; n++) {
      const uint8_t* from = p.values + (column + n) * row_bytes + (int4 ? k / 2 : k);
      auto* w = reinterpret_cast<uint8_t*>(to + l.head) + n * 4;
      if (int4) {
        pack_nibbles(from, w, inputs);
      } else if (p.weight == WEIGHT_INT8) {
        pack_bytes(from, w, inputs);
      } else {
        pack_fp8(from, w, inputs);
      }
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
