// The draw: inverse CDF in index order, first over segments, then inside one of them.
#pragma once

#include "autodeco/philox.h"
#include "kept_set.cuh"

namespace autodeco::cuda {

// Leaves in memory.segment_mass() the kept mass of every segment.
template <typename Element, bool kTeam>
__device__ __forceinline__ void fill_segment_masses(const Leader<Element, kTeam>& leader,
                                                    const KeptSet& kept) {
  const Memory& memory = leader.memory;
  const int num_segments = leader.row.num_segments;
  const int thread = static_cast<int>(gpu::thread_index());
  const int threads = static_cast<int>(gpu::num_threads());
  if (memory.head()->search.list.complete) {
    for (int segment = thread; segment < num_segments; segment += threads) {
      memory.segment_mass()[segment] = 0;
    }
    gpu::block_barrier();
    for_each_candidate(memory.head()->search.list, memory, [&](uint32_t key, int column) {
      if (!kept.contains(key, column)) return;
      uint32_t* words = reinterpret_cast<uint32_t*>(&memory.segment_mass()[column / kSegment]);
      atomic_add_mass(words, words + 1, leader.mass_of_key(key));
    });
    gpu::block_barrier();
    return;
  }
  // The sub-histogram left the mass above the last digit; what has that digit is added by counts.
  const uint32_t first_key = kept.key - kept.key % kSubKeys;
  const int tie_segment = kept.last_tie / kSegment;
  for (int segment = thread; segment < num_segments; segment += threads) {
    uint64_t mass = memory.segment_mass()[segment];
    for (uint32_t sub_key = kept.key % kSubKeys + 1; sub_key < kSubKeys; ++sub_key) {
      const uint32_t count = sub_count(memory, segment, sub_key);
      if (count != 0) mass += count * leader.mass_of_key(first_key + sub_key);
    }
    if (segment < tie_segment)
      mass += memory.segment_ties()[segment] * leader.mass_of_key(kept.key);
    memory.segment_mass()[segment] = mass;
  }
  gpu::block_barrier();
  if (tie_segment < num_segments && thread == 0) {
    uint32_t ties_before = 0;
    for (int segment = 0; segment < tie_segment; ++segment) {
      ties_before += memory.segment_ties()[segment];
    }
    memory.segment_mass()[tie_segment] +=
        (kept.kept_ties - ties_before) * leader.mass_of_key(kept.key);
  }
  gpu::block_barrier();
}

// Turns memory.segment_mass() into running sums and returns the last.
__device__ __forceinline__ uint64_t accumulate_segments(const Memory& memory, int num_segments) {
  uint64_t carried = 0;
  for (int begin = 0; begin < num_segments; begin += static_cast<int>(gpu::num_threads())) {
    const int segment = begin + static_cast<int>(gpu::thread_index());
    const uint64_t mass = segment < num_segments ? memory.segment_mass()[segment] : 0;
    uint64_t total;
    const uint64_t upto = carried + block_inclusive_sum(mass, memory.head()->scratch64, &total);
    if (segment < num_segments) memory.segment_mass()[segment] = upto;
    carried += total;
  }
  gpu::block_barrier();
  return carried;
}

struct Token {
  int column;
  float logit;
};

// The first column of a segment whose running kept mass exceeds `threshold`, by one warp. Masses
// are relative to `reference`; contains(logit, column) says what is kept.
template <typename Element, typename Contains>
__device__ __forceinline__ Token draw_in_segment(const Row<Element>& row, int segment,
                                                 const Scaling& scaling, float reference,
                                                 uint64_t segment_mass, uint64_t threshold,
                                                 bool rescale, Contains contains) {
  const auto kept_mass = [&](float logit, int column) {
    return contains(logit, column) ? scaling.mass(logit, reference) : uint64_t{0};
  };
  if (rescale) {
    // The segment was chosen by a float sum; inside it the exact masses count.
    uint64_t total = 0;
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
      float logits[kVector];
      row.load_vector(column_of(segment, v, 0), logits);
#pragma unroll
      for (int i = 0; i < kVector; ++i) total += kept_mass(logits[i], column_of(segment, v, i));
    }
    total = warp_reduce(total, [](uint64_t a, uint64_t b) { return a + b; });
    const double share = static_cast<double>(threshold) / static_cast<double>(segment_mass);
    threshold = static_cast<uint64_t>(share * static_cast<double>(total));
    if (threshold >= total) threshold = total - 1;
  }
  Token token = {-1, 0.0f};
  uint64_t before = 0;
#pragma unroll 1
  for (int v = 0; v < kVectors; ++v) {
    float logits[kVector];
    row.load_vector(column_of(segment, v, 0), logits);
    uint64_t mass = 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) mass += kept_mass(logits[i], column_of(segment, v, i));
    const uint64_t upto = before + warp_inclusive_sum(mass);
    uint64_t running = upto - mass;
    if (running <= threshold && threshold < upto) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const bool reached = running > threshold;
        running += kept_mass(logits[i], column_of(segment, v, i));
        if (!reached && running > threshold) token = {column_of(segment, v, i), logits[i]};
      }
    }
    before = gpu::shuffle(upto, 31);
  }
  return token;  // in the lane that holds it; -1 in the others
}

// First segment whose running mass exceeds the threshold.
__device__ __forceinline__ int segment_of(const Memory& memory, int num_segments,
                                          uint64_t threshold) {
  int low = 0;
  int high = num_segments - 1;
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
