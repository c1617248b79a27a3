// Rows are read in blocks that fit the first-level cache: any logit type becomes a float32 block.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "autodeco/dtype.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

constexpr int kBlock = 512;
// Blocks are padded with -inf to a multiple of this, so that loops have no tail.
constexpr int kLanes = 16;
static_assert(kBlock % kLanes == 0);

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargestFloat = std::numeric_limits<float>::max();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float to_float(float element) { return element; }

inline float to_float(BFloat16 element) {
  return std::bit_cast<float>(static_cast<uint32_t>(element.bits) << 16);
}

// Written as selects so that it vectorises, and without subnormal floats so that it is right when
// the process flushes those to zero.
inline float to_float(Float16 element) {
  const uint32_t sign = static_cast<uint32_t>(element.bits & 0x8000u) << 16;
  const uint32_t exponent = element.bits & 0x7c00u;
  const uint32_t magnitude = element.bits & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t infinite_or_nan = (magnitude << 13) | 0x7f800000u;
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t finite = exponent == 0 ? subnormal : normal;
  return std::bit_cast<float>(sign | (exponent == 0x7c00u ? infinite_or_nan : finite));
}

// Columns [0, vocab) of one row.
template <typename Element>
struct Row {
  const Element* data;
  int64_t vocab;
};

// Part of a row as float32: `size` columns from `begin`, then -inf up to `padded`.
struct Block {
  alignas(64) float logits[kBlock];
  int64_t begin;
  int size;
  int padded;
};

template <typename Element>
void load_block(const Row<Element>& row, int64_t begin, Block& block) {
  const int64_t left = row.vocab - begin;
  block.begin = begin;
  block.size = left < kBlock ? static_cast<int>(left) : kBlock;
  block.padded = (block.size + kLanes - 1) / kLanes * kLanes;
  const Element* source = row.data + begin;
  for (int i = 0; i < block.size; ++i) block.logits[i] = to_float(source[i]);
  for (int i = block.size; i < block.padded; ++i) block.logits[i] = -kInfinity;
}

// Calls visit(block) for every block of the row; visit returns false to stop.
template <typename Element, typename Visit>
void for_each_block(const Row<Element>& row, Visit&& visit) {
  Block block;
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    load_block(row, begin, block);
    if (!visit(block)) return;
  }
}

// Calls function(Row<Element>) with the element type that `dtype` names.
template <typename Function>
void with_row(DType dtype, const void* logits, int64_t offset, int64_t vocab, Function&& function) {
  switch (dtype) {
    case DType::kFloat32:
      function(Row<float>{static_cast<const float*>(logits) + offset, vocab});
      return;
    case DType::kBFloat16:
      function(Row<BFloat16>{static_cast<const BFloat16*>(logits) + offset, vocab});
      return;
    case DType::kFloat16:
      function(Row<Float16>{static_cast<const Float16*>(logits) + offset, vocab});
      return;
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
