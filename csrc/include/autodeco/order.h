// The total order of tokens: logit descending, index ascending, -0.0 equal to +0.0.
//
// Functions in these headers are `static`: files compiled with different instruction sets include
// them, and a shared (weak) definition could bring AVX-512 code into the baseline path. They are
// `constexpr` so that nvcc (--expt-relaxed-constexpr) compiles them for the device too.
#pragma once

#include <bit>
#include <cstdint>

namespace autodeco {

// Unsigned key with order_key(a) < order_key(b) exactly when a < b. NaN is not allowed.
static constexpr uint32_t order_key(float logit) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);  // -0.0 + 0.0 is +0.0
  const uint32_t flip = (bits >> 31) != 0 ? 0xffffffffu : 0x80000000u;
  return bits ^ flip;
}

// Inverse of order_key.
static constexpr float logit_of_key(uint32_t key) {
  const uint32_t flip = (key >> 31) != 0 ? 0x80000000u : 0xffffffffu;
  return std::bit_cast<float>(key ^ flip);
}

}  // namespace autodeco
