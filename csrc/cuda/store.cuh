// Stores of eight columns of an output row, rounded to its dtype.
#pragma once

#include "row.cuh"

namespace autodeco::cuda {

template <typename Element>
__device__ __forceinline__ Element rounded(float value);
template <>
__device__ __forceinline__ float rounded<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ Float16 rounded<Float16>(float value) {
  return {gpu::half_of_float(value)};
}
// To the nearest, of two the even one.
template <>
__device__ __forceinline__ BFloat16 rounded<BFloat16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

struct alignas(16) SixteenBytes {
  uint32_t word[4];
};

template <typename Element>
__device__ __forceinline__ bool takes_vectors(const Element* output) {
  return reinterpret_cast<uintptr_t>(output) % sizeof(SixteenBytes) == 0;
}

// Those of the eight that exist. 16 bytes at a time where the output is aligned to that.
template <typename Element>
__device__ __forceinline__ void store_vector(Element* output, int existing, bool aligned,
                                             const float* values) {
  if (aligned && existing >= kVector) {
    SixteenBytes* vectors = reinterpret_cast<SixteenBytes*>(output);
    if constexpr (sizeof(Element) == 4) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        SixteenBytes four;
#pragma unroll
        for (int i = 0; i < 4; ++i) four.word[i] = std::bit_cast<uint32_t>(values[4 * half + i]);
        vectors[half] = four;
      }
    } else {
      SixteenBytes eight;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t low = rounded<Element>(values[2 * i]).bits;
        const uint32_t high = rounded<Element>(values[2 * i + 1]).bits;
        eight.word[i] = high << 16 | low;
      }
      *vectors = eight;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i < existing) output[i] = rounded<Element>(values[i]);
  }
}

}  // namespace autodeco::cuda
