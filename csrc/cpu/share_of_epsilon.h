// u ln(1 + 1 / u) for u = 2^t. With u = q / epsilon, epsilon times this is q ln(1 + epsilon / q):
// what epsilon adds to a term q ln q of the entropy.
#pragma once

#include <cmath>
#include <limits>

#include "exp2.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// Within 2e-4, for every t that is a number.
#if defined(__AVX512F__)
// By a table that two registers hold: a parabola for each interval of length 1 around an integer.
class ShareOfEpsilon {
 public:
  ShareOfEpsilon() {
    float table[3][kIntervals];
    for (int integer = kFirst; integer < kFirst + kIntervals; ++integer) {
      // Through its values at the Chebyshev points, in powers of t.
      constexpr double kOffset = 0.4330127018922193;
      const double low = exact(integer - kOffset), middle = exact(integer);
      const double high = exact(integer + kOffset);
      const double slope = (high - low) / (2.0 * kOffset);
      const double square = (low - 2.0 * middle + high) / (2.0 * kOffset * kOffset);
      const int place = integer & (kIntervals - 1);
      table[0][place] = static_cast<float>(middle - (slope - square * integer) * integer);
      table[1][place] = static_cast<float>(slope - 2.0 * square * integer);
      table[2][place] = static_cast<float>(square);
    }
    std::memcpy(coefficients_, table, sizeof(table));
  }

  Floats operator()(Floats t) const {
    const __m512 at_most = _mm512_min_ps(reinterpret_cast<__m512>(t), _mm512_set1_ps(kMost));
    t = larger(splat(kLeast), reinterpret_cast<Floats>(at_most));
    // Adding 1.5 * 2^23 rounds to an integer, which is left in the low bits.
    const __m512i place = reinterpret_cast<__m512i>(t + 12582912.0f);
    Floats coefficients[3];
    for (int power = 0; power < 3; ++power) {
      coefficients[power] = reinterpret_cast<Floats>(
          _mm512_permutex2var_ps(coefficients_[power][0], place, coefficients_[power][1]));
    }
    return (coefficients[2] * t + coefficients[1]) * t + coefficients[0];
  }

 private:
  static constexpr int kIntervals = 2 * kLanes;
  // Below the first interval the share is less than 1e-5; above the last it is 1 within 1.8e-4, and
  // a row has no more than 35,000 tokens there.
  static constexpr int kFirst = -20;
  static constexpr float kLeast = kFirst - 0.5f;
  static constexpr float kMost = kFirst + kIntervals - 0.501f;

  static double exact(double t) {
    const double u = std::exp2(t);
    return u * std::log1p(1.0 / u);
  }

  __m512 coefficients_[3][2];
};
#else
class ShareOfEpsilon {
 public:
  Floats operator()(Floats t) const {
    constexpr float kLn2 = 0.693147181f;
    t = larger(splat(-100.0f), t);
    const Floats minus_magnitude =
        reinterpret_cast<Floats>(reinterpret_cast<Ints>(t) | std::numeric_limits<int32_t>::min());
    const Floats s = exp2_roughly(minus_magnitude);  // the smaller of u and 1 / u
    // Minimax fit of ln(1 + s) / s on [0, 1], error below 5e-5.
    Floats p = splat(0x1.5bd3f2p-5f);
    p = p * s - 0x1.46f996p-3f;
    p = p * s + 0x1.3b1510p-2f;
    p = p * s - 0x1.fd3148p-2f;
    p = p * s + 0x1.fff9bap-1f;
    return t > 0.0f ? p : s * (p * s - minus_magnitude * kLn2);
  }
};
#endif

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
