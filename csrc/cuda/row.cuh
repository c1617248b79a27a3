// One row of logits on the device: elements, order keys, loads, weights.
#pragma once

#include <cmath>

#include "autodeco/dtype.h"
#include "autodeco/filters.h"
#include "autodeco/fixed_mass.h"
#include "autodeco/order.h"
#include "blocks.cuh"

namespace autodeco::cuda {

constexpr float kInfinity = INFINITY;
constexpr float kNaN = std::bit_cast<float>(0x7fc00000u);

// A segment is what a warp holds in registers. Its lanes always hold the same columns, so that the
// float sum of a segment is one number whichever block, team or launch computes it.
constexpr int kSegment = 1024;
constexpr int kVector = 8;  // consecutive columns of a lane
constexpr int kVectors = kSegment / (32 * kVector);
constexpr int kLaneLogits = kVectors * kVector;
constexpr int kMaxSegments = (1 << 20) / kSegment;
// A piece is what eight lanes of a segment hold: in each vector 64 columns in a row.
constexpr int kPieces = 4;
constexpr int kPieceLanes = 32 / kPieces;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float element) { return element; }
__device__ __forceinline__ float to_float(BFloat16 element) {
  return std::bit_cast<float>(static_cast<uint32_t>(element.bits) << 16);
}
__device__ __forceinline__ float to_float(Float16 element) {
  return gpu::float_of_half(element.bits);
}

// Order keys of exactly as many bits as the element has: fewer bits are fewer radix digits.
template <typename Element>
struct Keys;

template <>
struct Keys<float> {
  static constexpr int kBits = 32;
  __device__ static __forceinline__ uint32_t of(float logit) { return order_key(logit); }
  __device__ static __forceinline__ float logit(uint32_t key) { return logit_of_key(key); }
};

template <>
struct Keys<BFloat16> {
  static constexpr int kBits = 16;
  __device__ static __forceinline__ uint32_t of(float logit) { return order_key(logit) >> 16; }
  __device__ static __forceinline__ float logit(uint32_t key) {
    // The key of a negative number is the complement of its bits.
    return logit_of_key(key << 16 | ((key & 0x8000u) != 0 ? 0u : 0xffffu));
  }
};

template <>
struct Keys<Float16> {
  static constexpr int kBits = 16;
  __device__ static __forceinline__ uint32_t of(float logit) {
    const uint32_t bits = gpu::half_of_float(logit + 0.0f);
    return bits ^ ((bits & 0x8000u) != 0 ? 0xffffu : 0x8000u);
  }
  __device__ static __forceinline__ float logit(uint32_t key) {
    const uint32_t bits = key ^ ((key & 0x8000u) != 0 ? 0x8000u : 0xffffu);
    return gpu::float_of_half(static_cast<uint16_t>(bits));
  }
};

template <typename Element>
struct Row {
  const Element* data;
  int columns;  // that exist; at most 2^20
  int num_segments;

  __device__ __forceinline__ Row(const void* logits, int64_t offset, int64_t existing)
      : data(gpu::opaque(static_cast<const Element*>(logits) + offset)),
        columns(static_cast<int>(existing)),
        num_segments((columns + kSegment - 1) / kSegment) {}

  // In units of 2^unit_shift segments.
  __device__ __forceinline__ int num_units(int unit_shift) const {
    return (num_segments + (1 << unit_shift) - 1) >> unit_shift;
  }

  // To 16 bytes.
  __device__ __forceinline__ bool aligned() const {
    return reinterpret_cast<uintptr_t>(data) % sizeof(gpu::Words4) == 0;
  }

  __device__ __forceinline__ float load_one(int column) const {
    if constexpr (sizeof(Element) == 4) {
      return gpu::load(data + column);
    } else {
      Element element;
      element.bits = gpu::load(reinterpret_cast<const uint16_t*>(data) + column);
      return to_float(element);
    }
  }

  // Eight consecutive columns; -inf beyond the last one.
  __device__ __forceinline__ void load_vector(int begin, float* logits) const {
    if (aligned() && begin + kVector <= columns) {
      load_whole_vector(begin, logits);
      return;
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      logits[i] = begin + i < columns ? load_one(begin + i) : -kInfinity;
    }
  }

  // The 32 columns of the calling lane: logits[8 * v + i] is column segment * 1024 + 256 * v +
  // 8 * lane + i.
  __device__ __forceinline__ void load_segment(int segment, float* logits) const {
    const int begin = segment * kSegment + static_cast<int>(gpu::lane_index()) * kVector;
    if (aligned() && (segment + 1) * kSegment <= columns) {  // the same in the whole warp
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        load_whole_vector(begin + v * 32 * kVector, logits + v * kVector);
      }
      return;
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      load_vector(begin + v * 32 * kVector, logits + v * kVector);
    }
  }

 private:
  __device__ __forceinline__ void load_whole_vector(int begin, float* logits) const {
    if constexpr (sizeof(Element) == 4) {
      const gpu::Words4 low = gpu::load_words4(data + begin);
      const gpu::Words4 high = gpu::load_words4(data + begin + 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        logits[i] = std::bit_cast<float>(low.word[i]);
        logits[4 + i] = std::bit_cast<float>(high.word[i]);
      }
    } else {
      const gpu::Words4 words = gpu::load_words4(data + begin);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        logits[2 * i] = to_float(Element{static_cast<uint16_t>(words.word[i])});
        logits[2 * i + 1] = to_float(Element{static_cast<uint16_t>(words.word[i] >> 16)});
      }
    }
  }
};

// Column of element i of vector v of the calling lane.
__device__ __forceinline__ int column_of(int segment, int v, int i) {
  return segment * kSegment + v * 32 * kVector + static_cast<int>(gpu::lane_index()) * kVector + i;
}

// The largest logit of some segments, NaN if one of them is; the same in the whole block. `scratch`
// as for block_reduce.
template <typename Element>
__device__ __forceinline__ float max_of_segments(const Row<Element>& row, int first, int last,
                                                 float* scratch) {
  float max = -kInfinity;
  for (int segment = first + static_cast<int>(gpu::warp_index()); segment < last;
       segment += num_warps()) {
    float logits[kLaneLogits];
    row.load_segment(segment, logits);
#pragma unroll
    for (int i = 0; i < kLaneLogits; ++i) max = gpu::max_or_nan(max, logits[i]);
  }
  return block_max(max, scratch);
}

// What the largest logit of a row says about it.
__device__ __forceinline__ RowStatus logits_status(float max) {
  if (max != max) return RowStatus::kLogitNaN;
  if (max == kInfinity) return RowStatus::kLogitPositiveInfinity;
  return max > -kInfinity ? RowStatus::kValid : RowStatus::kNoFiniteLogit;
}

// fixed_mass of fixed_mass.h, rounded once whatever the compiler: kernels are compiled one by one,
// and two of them must not give a token two masses.
__device__ __forceinline__ uint64_t fixed_mass(float weight) {
  return integer_in(fma(static_cast<double>(weight), kMassScale, kToInteger));
}

// log2 of a weight, (l - reference) * log2(e) / T, within the 4 ulp that semantics.md allows. Where
// l - reference could overflow and matter (huge T), logits are first multiplied by 1/4; where 1/T
// could overflow (tiny T), differences are first multiplied by 2^64. It depends on T alone.
struct Scaling {
  enum class Range : uint32_t { kPlain, kHuge, kTiny };

  float bits_per_unit;
  Range range = Range::kPlain;

  __device__ __forceinline__ explicit Scaling(float temperature) {
    constexpr float kLog2E = 1.44269504f;
    if (temperature > 1e36f) range = Range::kHuge;
    if (temperature < 1e-30f) range = Range::kTiny;
    bits_per_unit = kLog2E / (temperature * logit_factor() * difference_factor());
  }

  __device__ __forceinline__ float logit_factor() const {
    return range == Range::kHuge ? 0.25f : 1.0f;
  }
  __device__ __forceinline__ float difference_factor() const {
    return range == Range::kTiny ? 0x1p64f : 1.0f;
  }
  __device__ __forceinline__ bool is_plain() const { return range == Range::kPlain; }

  template <bool kPlain>
  __device__ __forceinline__ float exponent(float logit, float reference) const {
    if constexpr (kPlain) return (logit - reference) * bits_per_unit;
    const float difference = logit * logit_factor() - reference * logit_factor();
    return difference * difference_factor() * bits_per_unit;
  }

  __device__ __forceinline__ float weight(float logit, float reference) const {
    return gpu::exp2_approximate(is_plain() ? exponent<true>(logit, reference)
                                            : exponent<false>(logit, reference));
  }

  __device__ __forceinline__ uint64_t mass(float logit, float reference) const {
    return fixed_mass(weight(logit, reference));
  }
};

// Adds to a 64-bit sum kept in two words: shared memory has no native 64-bit addition. The carries
// of the low word are counted by whoever causes them, so the sum is exact whatever the order.
__device__ __forceinline__ void atomic_add_mass(uint32_t* low, uint32_t* high, uint64_t mass) {
  const uint32_t mass_low = static_cast<uint32_t>(mass);
  uint32_t mass_high = static_cast<uint32_t>(mass >> 32);
  const uint32_t before = gpu::atomic_add(low, mass_low);
  if (before + mass_low < before) ++mass_high;
  if (mass_high != 0) gpu::atomic_add(high, mass_high);
}

}  // namespace autodeco::cuda
