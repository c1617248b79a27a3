// Fixed-point masses: weights as integers, so that their sums are exact and independent of order,
// threads, launch shape and batch.
#pragma once

#include <bit>
#include <cstdint>

namespace autodeco {

// The unit is 1 / (2^44 - 1) of the largest weight. One less than 2^44, so that 2^20 equal tokens
// fit u64.
constexpr double kMassScale = 0x1p44 - 1.0;

static constexpr uint64_t fixed_mass(float weight) {
  // Adding 2^52 rounds to nearest and leaves the integer in the mantissa. A compiler may fuse this
  // with the product, which nothing else uses: then it does so wherever the function is inlined.
  const double shifted = static_cast<double>(weight) * kMassScale + 0x1p52;
  return std::bit_cast<uint64_t>(shifted) - std::bit_cast<uint64_t>(0x1p52);
}

}  // namespace autodeco
