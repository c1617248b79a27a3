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
constexpr float kNoWeightExponent = -127.0f;

// 2^(x factor) for x factor in [kNoWeightExponent, 0]. With FMA the product is not rounded. Error
// below 1.75 ulp where the result is at least 2^-126.
#if defined(__AVX512F__)
inline Floats exp2_of_product(Floats x, float factor) {
  // Adding 1.5 * 2^18 rounds to a multiple of 1/32: the low five bits are its parts in 32, and
  // those above are whole.
  constexpr float kRoundToPart = 393216.0f;
  const Floats shifted = x * factor + kRoundToPart;
  const Floats r = x * factor - (shifted - kRoundToPart);
  // The bits of 2^(k / 32), less k where the whole part is added to the exponent.
  const __m512i powers = _mm512_permutex2var_epi32(
      _mm512_setr_epi32(0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a,
                        0x3f79c3d3, 0x3f78f4f0, 0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043,
                        0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6),
      reinterpret_cast<__m512i>(shifted),
      _mm512_setr_epi32(0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be,
                        0x3f76248c, 0x3f76a81e, 0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907,
                        0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3));
  const Floats power = reinterpret_cast<Floats>(reinterpret_cast<Ints>(powers) +
                                                (reinterpret_cast<Ints>(shifted) << 18));
  // Minimax fit of (2^r - 1) / r for r in [-1/64, 1/64], relative error of 2^r below 5.4e-8.
  const Floats p = (0x1.ebfbecp-3f * r + 0x1.62e584p-1f) * r;
  return power * p + power;
}
#else
inline Floats exp2_of_product(Floats x, float factor) {
  const WholePart whole(x * factor);
  return whole.scale(exp2_of_fraction(x * factor - whole.number));
}
#endif

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
