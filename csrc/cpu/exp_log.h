// exp and log that the compiler can vectorise. Polynomials are minimax fits on the reduced range.
#pragma once

#include <bit>
#include <cstdint>

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// ln 2 in two words: the first has 9 significant bits, so n * kLn2High is exact for |n| < 2^15.
constexpr float kLn2High = 0.693359375f;
constexpr float kLn2Low = -2.12194440e-4f;
// Adding 1.5 * 2^23 rounds a float of small magnitude to an integer, which is left in the low bits.
constexpr float kRoundToInteger = 12582912.0f;

// exp(x) for x in [-inf, 0], error below 1.1 ulp; 0 below -87, where no fixed-point mass is left.
inline float exp_nonpositive(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + kRoundToInteger;
  const float n = shifted - kRoundToInteger;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 0x1.6d112cp-10f;
  p = p * r + 0x1.120b90p-7f;
  p = p * r + 0x1.55551ap-5f;
  p = p * r + 0x1.5554dcp-3f;
  p = p * r + 0.5f;
  const float y = (p * (r * r) + r) + 1.0f;
  const uint32_t exponent =
      std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRoundToInteger) + 127u;
  const float result = y * std::bit_cast<float>(exponent << 23);
  return x < -87.0f ? 0.0f : result;
}

// ln(x) for normal positive x, absolute error below 1e-6.
inline float log_positive(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;  // mantissa in [sqrt(1/2), sqrt(2))
  const float f =
      std::bit_cast<float>(bits - static_cast<int32_t>(static_cast<uint32_t>(exponent) << 23)) -
      1.0f;
  float p = 0x1.1d8ea6p-4f;
  p = p * f - 0x1.d635bcp-4f;
  p = p * f + 0x1.dea282p-4f;
  p = p * f - 0x1.fcf4c6p-4f;
  p = p * f + 0x1.23d21ap-3f;
  p = p * f - 0x1.555b4ap-3f;
  p = p * f + 0x1.999d5ap-3f;
  p = p * f - 0x1.fffffcp-3f;
  p = p * f + 0x1.555554p-2f;
  const float n = static_cast<float>(exponent);
  const float square = f * f;
  const float tail = (f * square * p + n * kLn2Low) - 0.5f * square;
  return (f + tail) + n * kLn2High;
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
