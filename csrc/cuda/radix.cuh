// One digit of the weighted radix select over order keys: histograms of counts and masses, and the
// bin in which a count or a mass is reached.
#pragma once

#include "candidates.cuh"

namespace autodeco::cuda {

// Sums that a thread keeps back while one token after the other goes to the same bin: a row of
// ties would otherwise queue at one address.
struct PendingBin {
  uint32_t bin = 0;
  uint32_t count = 0;
  uint64_t mass = 0;

  __device__ __forceinline__ void add(Histogram* histogram, uint32_t token_bin,
                                      uint64_t token_mass) {
    if (token_bin != bin) {
      flush(histogram);
      bin = token_bin;
    }
    ++count;
    mass += token_mass;
  }

  __device__ __forceinline__ void flush(Histogram* histogram) {
    if (count == 0) return;
    gpu::atomic_add(&histogram->count[bin], count);
    atomic_add_mass(&histogram->mass_low[bin], &histogram->mass_high[bin], mass);
    count = 0;
    mass = 0;
  }
};

__device__ __forceinline__ void clear(Histogram* histogram) {
  for (int bin = static_cast<int>(gpu::thread_index()); bin < kBins;
       bin += static_cast<int>(gpu::num_threads())) {
    histogram->count[bin] = 0;
    histogram->mass_low[bin] = 0;
    histogram->mass_high[bin] = 0;
  }
}

__device__ __forceinline__ bool has_leading_digits(uint32_t key, const Command& command) {
  return key >> (command.leading_shift - 1) >> 1 == command.leading;  // the shift may be by 32
}

__device__ __forceinline__ uint32_t digit_of(uint32_t key, const Command& command) {
  const uint32_t bins = 1u << (command.leading_shift - command.shift);
  return key >> command.shift & (bins - 1);
}

// By the leader alone; ends with a barrier.
template <typename Element>
__device__ __forceinline__ void histogram_of_list(const CandidateList& list, const Command& command,
                                                  const Scaling& scaling, const Memory& memory) {
  clear(memory.histogram());
  gpu::block_barrier();
  PendingBin pending;
  for_each_candidate(list, memory, [&](uint32_t key, int) {
    if (!has_leading_digits(key, command)) return;
    pending.add(memory.histogram(), digit_of(key, command),
                scaling.mass(Keys<Element>::logit(key), command.row_max));
  });
  pending.flush(memory.histogram());
  gpu::block_barrier();
}

// By every block on its segments; the sum is in the leader after the barrier this ends with.
template <typename Element, bool kTeam>
__device__ __forceinline__ void histogram_of_row(const Row<Element>& row, const Team<kTeam>& team,
                                                 const Command& command, const Scaling& scaling,
                                                 const Memory& memory) {
  clear(memory.histogram());
  team.barrier();
  PendingBin pending;
  bool list_is_full = !(command.threshold < kInfinity);
  const int num_warps = static_cast<int>(gpu::num_threads() / 32);
  for (int segment = team.first_segment + static_cast<int>(gpu::warp_index());
       segment < team.last_segment; segment += num_warps) {
    if (memory.segment_max(segment) < command.lowest) continue;
    const bool reaches = lane_reaches(memory, segment, command.lowest);
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
      float logits[kVector];
      load_reaching(row, segment, v, reaches, logits);
      if (!list_is_full) {
        list_is_full =
            push_candidates<Element>(team, memory, logits, segment, v, command.threshold);
      }
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const uint32_t key = Keys<Element>::of(logits[i]);
        if (logits[i] == -kInfinity || !has_leading_digits(key, command)) continue;
        pending.add(memory.histogram(), digit_of(key, command),
                    scaling.mass(logits[i], command.row_max));
      }
    }
  }
  pending.flush(memory.histogram());
  if (!team.leads()) {
    gpu::block_barrier();
    Histogram* sum = team.in_leader(memory.histogram());
    for (int bin = static_cast<int>(gpu::thread_index()); bin < kBins;
         bin += static_cast<int>(gpu::num_threads())) {
      const uint32_t count = memory.histogram()->count[bin];
      if (count == 0) continue;
      gpu::atomic_add(&sum->count[bin], count);
      atomic_add_mass(&sum->mass_low[bin], &sum->mass_high[bin],
                      static_cast<uint64_t>(memory.histogram()->mass_high[bin]) << 32 |
                          memory.histogram()->mass_low[bin]);
    }
  }
  team.barrier();
}

// The last digit, for which the row is read only once: of every segment the mass above the leading
// digits, and the count of each of the 32 keys that have them; if the command says so, also the
// tokens above the leading digits as the leader's list. Ends with a barrier.
template <typename Element, bool kTeam>
__device__ __forceinline__ void sub_histogram_of_row(const Row<Element>& row,
                                                     const Team<kTeam>& team,
                                                     const Command& command, const Scaling& scaling,
                                                     const Memory& memory) {
  constexpr int kWords = kSubKeys / 2;
  if (team.leads()) {
    for (int i = static_cast<int>(gpu::thread_index()); i < row.num_segments * kWords;
         i += static_cast<int>(gpu::num_threads())) {
      memory.sub_counts()[i] = 0;
    }
    if (gpu::thread_index() == 0) {
      memory.head()->count_above = 0;
      memory.head()->num_candidates = 0;
    }
  }
  team.barrier();
  uint32_t* sub_counts = team.in_leader(memory.sub_counts());
  const float lowest_above = Keys<Element>::logit((command.leading + 1) << command.leading_shift);
  uint32_t count_above = 0;
  const int num_warps = static_cast<int>(gpu::num_threads() / 32);
  for (int segment = team.first_segment + static_cast<int>(gpu::warp_index());
       segment < team.last_segment; segment += num_warps) {
    if (memory.segment_max(segment) < command.lowest) {
      if (gpu::lane_index() == 0) team.in_leader(memory.segment_mass())[segment] = 0;
      continue;
    }
    const bool reaches = lane_reaches(memory, segment, command.lowest);
    uint64_t mass_above = 0;
    uint32_t pending_key = 0;
    uint32_t pending_count = 0;
    const auto flush = [&]() {
      if (pending_count == 0) return;
      gpu::atomic_add(&sub_counts[segment * kWords + static_cast<int>(pending_key / 2)],
                      pending_count << (pending_key % 2 * 16));
    };
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
      float logits[kVector];
      load_reaching(row, segment, v, reaches, logits);
      if (command.gathers) {
        push_candidates<Element>(team, memory, logits, segment, v, lowest_above);
      }
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (logits[i] == -kInfinity) continue;
        const uint32_t key = Keys<Element>::of(logits[i]);
        const uint32_t leading = key >> command.leading_shift;
        if (leading > command.leading) {
          ++count_above;
          mass_above += scaling.mass(logits[i], command.row_max);
        } else if (leading == command.leading) {
          const uint32_t sub_key = key % kSubKeys;
          if (sub_key != pending_key) {
            flush();
            pending_key = sub_key;
            pending_count = 0;
          }
          ++pending_count;
        }
      }
    }
    flush();
    mass_above = warp_reduce(mass_above, [](uint64_t a, uint64_t b) { return a + b; });
    if (gpu::lane_index() == 0) team.in_leader(memory.segment_mass())[segment] = mass_above;
  }
  count_above = warp_reduce(count_above, [](uint32_t a, uint32_t b) { return a + b; });
  if (gpu::lane_index() == 0 && count_above != 0) {
    gpu::atomic_add(team.in_leader(&memory.head()->count_above), count_above);
  }
  team.barrier();
}

__device__ __forceinline__ uint32_t sub_count(const Memory& memory, int segment, uint32_t sub_key) {
  const uint32_t word =
      memory.sub_counts()[segment * (kSubKeys / 2) + static_cast<int>(sub_key / 2)];
  return word >> (sub_key % 2 * 16) & 0xffffu;
}

// Finds the bin, from the highest downwards, in which the count or the mass reaches `target` (or
// the last that holds anything), but not one below `floor_bin`. head->level comes in as what lies
// above all bins and goes out as the bin found. Ends with a barrier.
template <typename CountOf, typename MassOf>
__device__ __forceinline__ void find_level(int num_bins, Measure measure, uint64_t target,
                                           int floor_bin, CountOf count_of, MassOf mass_of,
                                           Head* head) {
  const int threads = static_cast<int>(gpu::num_threads());
  const int share = (num_bins + threads - 1) / threads;
  const int begin = static_cast<int>(gpu::thread_index()) * share;  // counted from the highest bin
  const int end = begin + share < num_bins ? begin + share : num_bins;
  uint32_t count = 0;
  uint64_t mass = 0;
#pragma unroll 1
  for (int i = begin; i < end; ++i) {
    count += count_of(num_bins - 1 - i);
    mass += mass_of(num_bins - 1 - i);
  }
  uint32_t total_count;
  uint64_t total_mass;
  uint32_t count_before = head->level.count_above - count;
  uint64_t mass_before = head->level.mass_above - mass;
  const uint64_t reachable_above =
      measure == Measure::kCount ? uint64_t{head->level.count_above} : head->level.mass_above;
  count_before += block_inclusive_sum(count, head->scratch32, &total_count);
  mass_before += block_inclusive_sum(mass, head->scratch64, &total_mass);
  const uint64_t reachable =
      reachable_above + (measure == Measure::kCount ? uint64_t{total_count} : total_mass);
  if (target > reachable) target = reachable;
  if (measure == Measure::kFloor) {
    if (gpu::thread_index() == 0) head->found = floor_bin;
  } else {
    uint64_t reached = measure == Measure::kCount ? count_before : mass_before;
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
      const int bin = num_bins - 1 - i;
      const uint64_t before = reached;
      reached += measure == Measure::kCount ? count_of(bin) : mass_of(bin);
      if (before < target && reached >= target) head->found = bin;
    }
  }
  gpu::block_barrier();
  const int bin = head->found > floor_bin ? head->found : floor_bin;
  const int place = num_bins - 1 - bin;
  if (begin <= place && place < end) {
#pragma unroll 1
    for (int i = begin; i < place; ++i) {
      count_before += count_of(num_bins - 1 - i);
      mass_before += mass_of(num_bins - 1 - i);
    }
    head->level = {
        static_cast<uint32_t>(bin), count_before, mass_before, count_of(bin), mass_of(bin),
        head->found < floor_bin};
  }
  gpu::block_barrier();
}

__device__ __forceinline__ void find_level_of_histogram(int num_bins, Measure measure,
                                                        uint64_t target, int floor_bin,
                                                        const Memory& memory) {
  find_level(
      num_bins, measure, target, floor_bin, [&](int bin) { return memory.histogram()->count[bin]; },
      [&](int bin) {
        return static_cast<uint64_t>(memory.histogram()->mass_high[bin]) << 32 |
               memory.histogram()->mass_low[bin];
      },
      memory.head());
}

}  // namespace autodeco::cuda
