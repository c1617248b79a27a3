// exp2 of vectors.
#pragma once

#include "simd.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// The whole number next to a vector's elements, as a float and as what scales by its power of two.
struct WholePart {
#if defined(__AVX512F__)
  explicit WholePart(Floats x)
      : number(reinterpret_cast<Floats>(_mm512_roundscale_ps(
            reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))) {}

  Floats scale(Floats values) const {
    return reinterpret_cast<Floats>(
        _mm512_scalef_ps(reinterpret_cast<__m512>(values), reinterpret_cast<__m512>(number)));
  }

  Floats number;
#else
  // Adding 1.5 * 2^23 rounds to an integer, which is left in the low bits; adding the bias of a
  // float's exponent as well makes a power of two of them.
  static constexpr float kRoundToInteger = 12582912.0f + 127.0f;

  explicit WholePart(Floats x) : shifted(x + kRoundToInteger), number(shifted - kRoundToInteger) {}

  // A product, not a sum of bits: NaN of any payload must stay NaN.
  Floats scale(Floats values) const {
    return values * reinterpret_cast<Floats>(reinterpret_cast<Ints>(shifted) << 23);
  }

  Floats shifted;
  Floats number;
#endif
};

// 2^r for r in [-1/2, 1/2]: minimax fit of (2^r - 1) / r, relative error of 2^r below 2e-9.
inline Floats exp2_of_fraction(Floats r) {
  Floats p = splat(0x1.41fbc2p-13f);
  p = p * r + 0x1.5f3e54p-10f;
  p = p * r + 0x1.3b2d4cp-7f;
  p = p * r + 0x1.c6aee8p-5f;
  p = p * r + 0x1.ebfbdcp-3f;
  p = p * r + 0x1.62e430p-1f;
  return p * r + 1.0f;
}

// 2^x for x in [-126, 126], error below 1.25 ulp (1 ulp with FMA). NaN stays NaN, 2^0 is 1.
inline Floats exp2_in_range(Floats x) {
  const WholePart whole(x);
  return whole.scale(exp2_of_fraction(x - whole.number));
}

// The same for all x <= 126, most of them not positive: below -126 the result is at most 2^-126.
inline Floats exp2_nonpositive(Floats x) {
#if defined(__AVX512F__)
  // VSCALEF takes every exponent; at -inf it makes 0 of the fraction's power, which is NaN.
  return exp2_in_range(x);
#else
  return exp2_in_range(larger(splat(-126.0f), x));
#endif
}

// An exponent at which exp2_of_product is 0.
#if defined(__AVX512F__)
constexpr float kNoWeightExponent = -160.0f;
#else
constexpr float kNoWeightExponent = -127.0f;
#endif

// 2^(x (high + low)) for x (high + low) in [kNoWeightExponent, 0], where `low` is what `high` lacks
// for rounding.
inline Floats exp2_of_product(Floats x, float high, float low) {
  const WholePart whole(x * high);
  return whole.scale(exp2_of_fraction((x * high - whole.number) + x * low));
}

// 2^x for x in [-126, 0], relative error below 1e-4.
inline Floats exp2_roughly(Floats x) {
  const WholePart whole(x);
  const Floats r = x - whole.number;
  Floats p = splat(0x1.c3f760p-5f);
  p = p * r + 0x1.f0de1ap-3f;
  p = p * r + 0x1.62f31ap-1f;
  return whole.scale(p * r + 0x1.fff692p-1f);
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
