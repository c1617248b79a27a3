// The draw: inverse CDF in index order, first over segments, then inside one of them.
#pragma once

#include "autodeco/philox.h"
#include "kept_set.cuh"

namespace autodeco::cuda {

// Lanes that add up the keys of a unit's last digit: a warp for 256 of them. For 16, of which every
// segment is a unit, the sum of a warp would cost more than a lane of its own.
template <typename Element>
constexpr int kUnitLanes = Keys<Element>::kBits == 16 ? 1 : 32;

// Leaves in memory.segment_mass() the kept mass of every unit of segments.
template <typename Element, bool kTeam>
__device__ __forceinline__ void fill_segment_masses(const Leader<Element, kTeam>& leader,
                                                    const KeptSet& kept) {
  const Memory& memory = leader.memory;
  const Search& search = memory.head()->search;
  const LastDigit digit = memory.last_digit<Element>();
  const int num_units = leader.row.num_units(unit_shift_of<Element>(memory));
  const int thread = static_cast<int>(gpu::thread_index());
  const int threads = static_cast<int>(gpu::num_threads());
  if (search.list.complete) {
#pragma unroll 1
    for (int segment = thread; segment < num_units; segment += threads) {
      memory.segment_mass()[segment] = 0;
    }
    gpu::block_barrier();
    for_each_candidate(search.list, memory, [&](uint32_t key, int column) {
      if (!kept.contains(key, column)) return;
      uint32_t* words = reinterpret_cast<uint32_t*>(&memory.segment_mass()[column / kSegment]);
      atomic_add_mass(words, words + 1, leader.mass_of_key(key));
    });
    gpu::block_barrier();
    return;
  }
  // The sub-histogram left the mass above the last digit; what has that digit is added by counts.
  constexpr int kLanes = kUnitLanes<Element>;
  const int keys = 1 << digit.bits;
  const int kept_key = static_cast<int>(kept.key) & (keys - 1);
  const uint32_t first_key = kept.key - static_cast<uint32_t>(kept_key);
  const bool keeps_all_ties = kept.kept_ties == kept.ties;
  const int tie_unit = keeps_all_ties ? num_units : kept.last_tie / kSegment >> digit.unit_shift;
#pragma unroll 1
  for (int unit = thread / kLanes; unit < num_units; unit += threads / kLanes) {
    uint64_t mass = 0;
    for (int sub_key = kept_key + 1 + thread % kLanes; sub_key < keys; sub_key += kLanes) {
      const uint32_t count = sub_count(memory, digit, unit, static_cast<uint32_t>(sub_key));
      if (count == 0) continue;
      mass += count * leader.mass_of_key(first_key + static_cast<uint32_t>(sub_key));
    }
    if constexpr (kLanes == 32) mass = warp_sum(mass);
    if (thread % kLanes != 0) continue;
    uint32_t ties = 0;
    if (unit < tie_unit) ties = memory.segment_ties()[unit];
    if (unit == tie_unit) ties = memory.head()->ties_of_found;
    memory.segment_mass()[unit] += mass + ties * leader.mass_of_key(kept.key);
  }
  gpu::block_barrier();
}

// Turns memory.segment_mass() into running sums and returns the last.
__device__ __forceinline__ uint64_t accumulate_units(const Memory& memory, int num_units) {
  uint64_t carried = 0;
#pragma unroll 1
  for (int begin = 0; begin < num_units; begin += static_cast<int>(gpu::num_threads())) {
    const int unit = begin + static_cast<int>(gpu::thread_index());
    const uint64_t mass = unit < num_units ? memory.segment_mass()[unit] : 0;
    uint64_t total;
    const uint64_t upto = carried + block_inclusive_sum(mass, memory.head()->scratch64, &total);
    if (unit < num_units) memory.segment_mass()[unit] = upto;
    carried += total;
  }
  gpu::block_barrier();
  return carried;
}

struct Token {
  int column;
  float logit;
};

// The first column of a unit of segments whose running kept mass exceeds `threshold`, by one warp.
// Masses are relative to `reference`; contains(logit, column) says what is kept.
template <typename Element, typename Contains>
__device__ __forceinline__ Token draw_in_unit(const Row<Element>& row, int segment, int unit_shift,
                                              const Scaling& scaling, float reference,
                                              uint64_t unit_mass, uint64_t threshold, bool rescale,
                                              Contains contains) {
  const int vectors = kVectors << unit_shift;  // those behind the first segment are numbered on
  const auto kept_mass = [&](float logit, int column) {
    return contains(logit, column) ? scaling.mass(logit, reference) : uint64_t{0};
  };
  Token token = {-1, 0.0f};
#pragma unroll 1
  for (bool draws = !rescale;; draws = true) {
    uint64_t before = 0;
#pragma unroll 1
    for (int v = 0; v < vectors && !(draws && before > threshold); ++v) {
      float logits[kVector];
      row.load_vector(column_of(segment, v, 0), logits);
      uint64_t masses[kVector];
      uint64_t mass = 0;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        masses[i] = kept_mass(logits[i], column_of(segment, v, i));
        mass += masses[i];
      }
      const uint64_t upto = before + warp_inclusive_sum(mass);
      uint64_t running = upto - mass;
      if (draws && running <= threshold && threshold < upto) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          const bool reached = running > threshold;
          running += masses[i];
          if (!reached && running > threshold) token = {column_of(segment, v, i), logits[i]};
        }
      }
      before = gpu::shuffle(upto, 31);
    }
    if (draws) return token;  // in the lane that holds it; -1 in the others
    // The unit was chosen by a float sum; inside it the exact masses count.
    const double share = static_cast<double>(threshold) / static_cast<double>(unit_mass);
    threshold = static_cast<uint64_t>(share * static_cast<double>(before));
    if (threshold >= before) threshold = before - 1;
  }
}

// First unit whose running mass exceeds the threshold.
__device__ __forceinline__ int unit_of(const Memory& memory, int num_units, uint64_t threshold) {
  int low = 0;
  int high = num_units - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (memory.segment_mass()[middle] > threshold) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// First column with the largest logit, by one warp; the same in all lanes.
template <typename Element>
__device__ __forceinline__ int find_argmax(const Row<Element>& row, int segment, float max) {
  int column = row.columns;
#pragma unroll 1
  for (int v = kVectors - 1; v >= 0; --v) {
    float logits[kVector];
    row.load_vector(column_of(segment, v, 0), logits);
#pragma unroll
    for (int i = kVector - 1; i >= 0; --i) {
      if (logits[i] == max) column = column_of(segment, v, i);
    }
  }
  return warp_reduce(column, [](int a, int b) { return a < b ? a : b; });
}

}  // namespace autodeco::cuda
