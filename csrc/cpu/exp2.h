// exp2 of vectors.
#pragma once

#include "simd.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// 2^x for x in [-inf, 0], error below 1.25 ulp (1 ulp with FMA); 2^-126 below -126. NaN stays NaN,
// 2^0 is 1.
inline Floats exp2_nonpositive(Floats x) {
  x = larger(splat(-126.0f), x);
#if defined(__AVX512F__)
  const __m512 whole = _mm512_roundscale_ps(reinterpret_cast<__m512>(x),
                                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Floats n = reinterpret_cast<Floats>(whole);
#else
  // Adding 1.5 * 2^23 rounds to an integer, which is left in the low bits; adding the bias of a
  // float's exponent as well makes a power of two of them.
  constexpr float kRoundToInteger = 12582912.0f + 127.0f;
  const Floats shifted = x + kRoundToInteger;
  const Floats n = shifted - kRoundToInteger;
#endif
  const Floats r = x - n;
  // Minimax fit of (2^r - 1) / r on [-1/2, 1/2], relative error of 2^r below 2e-9.
  Floats p = splat(0x1.41fbc2p-13f);
  p = p * r + 0x1.5f3e54p-10f;
  p = p * r + 0x1.3b2d4cp-7f;
  p = p * r + 0x1.c6aee8p-5f;
  p = p * r + 0x1.ebfbdcp-3f;
  p = p * r + 0x1.62e430p-1f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), whole));
#else
  // A product, not a sum of bits: NaN of any payload must stay NaN.
  return p * reinterpret_cast<Floats>(reinterpret_cast<Ints>(shifted) << 23);
#endif
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
