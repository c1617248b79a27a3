// Vectors of the widest floats that the instruction set of this translation unit has, and the few
// operations on them that the language's vector types lack.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
// GCC 12 takes the undefined operands of its own intrinsics for a mistake of ours.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t UnsignedInts __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t Elements16 __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef int16_t Shorts __attribute__((vector_size(2 * kLanes * sizeof(int16_t))));
typedef uint16_t UnsignedShorts __attribute__((vector_size(2 * kLanes * sizeof(uint16_t))));
typedef uint64_t Words __attribute__((vector_size(kLanes * sizeof(uint64_t))));

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

// Without subnormal floats, so that it is right when the process flushes those to zero.
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

inline Floats splat(float value) { return Floats{} + value; }

inline Floats load(const float* source) {
  Floats values;
  std::memcpy(&values, source, sizeof(values));
  return values;
}

inline Floats load(const BFloat16* source) {
#if defined(__AVX512F__)
  // In one instruction: each element goes to the upper half of a word, whose lower half is cleared.
  const __m512i bits =
      _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
  const __m512i element =
      _mm512_slli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 16);
  return reinterpret_cast<Floats>(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, element, bits));
#elif defined(__AVX2__)
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  return reinterpret_cast<Floats>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
#else
  Floats values;
  for (int lane = 0; lane < kLanes; ++lane) values[lane] = to_float(source[lane]);
  return values;
#endif
}

inline Floats load(const Float16* source) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(bits));
#elif defined(__AVX2__)
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(bits));
#else
  Floats values;
  for (int lane = 0; lane < kLanes; ++lane) values[lane] = to_float(source[lane]);
  return values;
#endif
}

// 2 * kLanes elements.
struct TwoFloats {
  Floats first;
  Floats second;
};

template <typename Element>
TwoFloats load_two(const Element* source) {
  return {load(source), load(source + kLanes)};
}

// Two neighbours share a word, so that one instruction decodes a vector: not in the columns' order.
inline TwoFloats load_two(const BFloat16* source) {
  Ints pairs;
  std::memcpy(&pairs, source, sizeof(pairs));
  return {reinterpret_cast<Floats>(pairs << 16),
          reinterpret_cast<Floats>(pairs & static_cast<int32_t>(0xffff0000u))};
}

inline void store(float* target, Floats values) { std::memcpy(target, &values, sizeof(values)); }

inline void store(BFloat16* target, Floats values) {
  const UnsignedInts bits = reinterpret_cast<UnsignedInts>(values);
  // To nearest, ties to even; a NaN must not become infinite.
  const UnsignedInts rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const UnsignedInts elements =
      (bits & 0x7fffffffu) > 0x7f800000u ? UnsignedInts{} + 0x7fc0u : rounded;
  const Elements16 stored = __builtin_convertvector(elements, Elements16);
  std::memcpy(target, &stored, sizeof(stored));
}

#if !defined(__AVX2__)
// To nearest, ties to even; infinite beyond the range.
inline uint16_t float16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Adding 0.5 leaves the multiple of 2^-24 in the mantissa.
    const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f);
    return static_cast<uint16_t>(sign | (subnormal - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}
#endif

inline void store(Float16* target, Floats values) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                      _mm512_cvtps_ph(reinterpret_cast<__m512>(values), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target),
                   _mm256_cvtps_ph(reinterpret_cast<__m256>(values), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int lane = 0; lane < kLanes; ++lane) target[lane].bits = float16_bits(values[lane]);
#endif
}

// `b` where one of them is NaN.
inline Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Floats>(
      _mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#elif defined(__x86_64__)
  return reinterpret_cast<Floats>(
      _mm_max_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
#else
  return a > b ? a : b;
#endif
}

// Which lanes a condition holds for.
#if defined(__AVX512F__)
typedef __mmask16 Mask;

inline Mask greater(Floats a, Floats b) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GT_OQ);
}
inline Mask at_least(Floats a, Floats b) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GE_OQ);
}
inline Mask equal(Floats a, Floats b) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_EQ_OQ);
}
inline Mask is_nan(Floats a) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(a), _CMP_UNORD_Q);
}
inline uint32_t bits_of(Mask mask) { return mask; }
inline Floats choose(Mask mask, Floats yes, Floats no) {
  return reinterpret_cast<Floats>(
      _mm512_mask_blend_ps(mask, reinterpret_cast<__m512>(no), reinterpret_cast<__m512>(yes)));
}
inline void add_where(Mask mask, Floats& sum, Floats values) {
  const __m512 before = reinterpret_cast<__m512>(sum);
  sum = reinterpret_cast<Floats>(
      _mm512_mask_add_ps(before, mask, before, reinterpret_cast<__m512>(values)));
}
inline void count_where(Mask mask, Ints& counts) {
  const __m512i before = reinterpret_cast<__m512i>(counts);
  counts =
      reinterpret_cast<Ints>(_mm512_mask_add_epi32(before, mask, before, _mm512_set1_epi32(1)));
}
#else
typedef Ints Mask;  // 0 or -1

inline Mask greater(Floats a, Floats b) { return a > b; }
inline Mask at_least(Floats a, Floats b) { return a >= b; }
inline Mask equal(Floats a, Floats b) { return a == b; }
inline Mask is_nan(Floats a) { return a != a; }
inline uint32_t bits_of(Mask mask) {
#if defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= (mask[lane] & 1u) << lane;
  return bits;
#endif
}
inline Floats choose(Mask mask, Floats yes, Floats no) { return mask ? yes : no; }
inline void add_where(Mask mask, Floats& sum, Floats values) {
  sum += reinterpret_cast<Floats>(mask & reinterpret_cast<Ints>(values));
}
inline void count_where(Mask mask, Ints& counts) { counts -= mask; }
#endif

// Writes the chosen lanes one after another, and says how many they are. What lies behind them in a
// vector's length may be overwritten.
inline int write_chosen(float* target, Floats values, Mask mask) {
  const uint32_t chosen = bits_of(mask);
#if defined(__AVX512F__)
  // Compressed in a register: compressing stores are slow on some processors.
  _mm512_storeu_ps(target, _mm512_maskz_compress_ps(mask, reinterpret_cast<__m512>(values)));
#else
  int place = 0;
  for (uint32_t left = chosen; left != 0; left &= left - 1) {
    target[place++] = values[__builtin_ctz(left)];
  }
#endif
  return __builtin_popcount(chosen);
}

// The lanes in the order of lane ^ distance.
template <int kDistance>
Floats swapped(Floats values) {
  Ints source;
  for (int lane = 0; lane < kLanes; ++lane) source[lane] = lane ^ kDistance;
#if defined(__clang__)
  Floats result;
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = values[lane ^ kDistance];
  return result;
#else
  return __builtin_shuffle(values, source);
#endif
}

// a[0], b[0], a[1], b[1] and so on.
inline void interleave(Floats a, Floats b, float (*pairs)[2]) {
  float* target = &pairs[0][0];
#if defined(__clang__)
  for (int lane = 0; lane < kLanes; ++lane) {
    target[2 * lane] = a[lane];
    target[2 * lane + 1] = b[lane];
  }
#else
  Ints low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = lane / 2 + (lane % 2 == 0 ? 0 : kLanes);
    high[lane] = low[lane] + kLanes / 2;
  }
  store(target, __builtin_shuffle(a, b, low));
  store(target + kLanes, __builtin_shuffle(a, b, high));
#endif
}

// Combined in a fixed order: first lanes half a vector apart, then a quarter.
template <typename Combine>
float reduce_lanes(Floats values, Combine combine) {
  if constexpr (kLanes > 8) values = combine(values, swapped<8>(values));
  if constexpr (kLanes > 4) values = combine(values, swapped<4>(values));
  values = combine(values, swapped<2>(values));
  return combine(values, swapped<1>(values))[0];
}

inline float largest_lane(Floats values) {
  return reduce_lanes(values, [](Floats a, Floats b) { return larger(a, b); });
}

inline float sum_of_lanes(Floats values) {
  return reduce_lanes(values, [](Floats a, Floats b) { return a + b; });
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
