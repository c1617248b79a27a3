// Fixed-point masses: weights as integers, so that their sums are exact and independent of order,
// threads, launch shape and batch.
#pragma once

#include <bit>
#include <cstdint>

namespace autodeco {

// The unit is 1 / (2^44 - 1) of the largest weight. One less than 2^44, so that 2^20 equal tokens
// fit u64.
constexpr double kMassScale = 0x1p44 - 1.0;

// Adding this rounds to nearest and leaves the integer in the mantissa.
constexpr double kToInteger = 0x1p52;

static constexpr uint64_t integer_in(double shifted) {
  return std::bit_cast<uint64_t>(shifted) - std::bit_cast<uint64_t>(kToInteger);
}

static constexpr uint64_t fixed_mass(float weight) {
  // A compiler may fuse the product, which nothing else uses, with the sum: then it does so
  // wherever the function is inlined.
  return integer_in(static_cast<double>(weight) * kMassScale + kToInteger);
}

}  // namespace autodeco
