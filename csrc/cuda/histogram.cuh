// Histograms of one digit of the order keys, in the shared memory of every block; those of a team
// are added up in the leader, by way of global memory where there are no clusters.
#pragma once

#include "leader.cuh"

namespace autodeco::cuda {

// The arrays of a histogram; one of masses alone has no counts.
struct Bins {
  int size;
  uint32_t* mass_low;
  uint32_t* mass_high;
  uint32_t* count;
};

__device__ __forceinline__ Bins bins_of(Histogram* histogram) {
  return {kBins, histogram->mass_low, histogram->mass_high, histogram->count};
}

__device__ __forceinline__ Bins bins_of(LongHistogram* histogram) {
  return {kLongBins, histogram->mass_low, histogram->mass_high, nullptr};
}

__device__ __forceinline__ uint64_t mass_of_bin(const Bins& bins, int bin) {
  return static_cast<uint64_t>(bins.mass_high[bin]) << 32 | bins.mass_low[bin];
}

// Sums that a thread keeps back while one token after the other goes to the same bin: a row of
// ties would otherwise queue at one address.
struct PendingBin {
  uint32_t bin = 0;
  uint32_t count = 0;
  uint64_t mass = 0;

  __device__ __forceinline__ void add(const Bins& bins, uint32_t token_bin, uint64_t token_mass) {
    if (token_bin != bin) {
      flush(bins);
      bin = token_bin;
    }
    ++count;
    mass += token_mass;
  }

  __device__ __forceinline__ void flush(const Bins& bins) {
    if (bins.count != nullptr && count != 0) gpu::atomic_add(&bins.count[bin], count);
    if (mass != 0) atomic_add_mass(&bins.mass_low[bin], &bins.mass_high[bin], mass);
    count = 0;
    mass = 0;
  }
};

__device__ __forceinline__ void clear(const Bins& bins) {
#pragma unroll 1
  for (int bin = static_cast<int>(gpu::thread_index()); bin < bins.size;
       bin += static_cast<int>(gpu::num_threads())) {
    bins.mass_low[bin] = 0;
    bins.mass_high[bin] = 0;
    if (bins.count != nullptr) bins.count[bin] = 0;
  }
}

__device__ __forceinline__ void add(const Bins& part, const Bins& sum) {
#pragma unroll 1
  for (int bin = static_cast<int>(gpu::thread_index()); bin < part.size;
       bin += static_cast<int>(gpu::num_threads())) {
    const uint32_t count = part.count != nullptr ? part.count[bin] : 0;
    if (count != 0) gpu::atomic_add(&sum.count[bin], count);
    const uint64_t mass = mass_of_bin(part, bin);
    if (mass != 0) atomic_add_mass(&sum.mass_low[bin], &sum.mass_high[bin], mass);
  }
}

// Where the peers add theirs to those of a block.
template <bool kTeam>
__device__ __forceinline__ Bins sum_of_peers(const Team<kTeam>& team, const Memory& memory,
                                             const Bins& bins) {
  const auto of_team = [&](uint32_t* words) {
    return words == nullptr ? words : team.in_leader(memory.of_team(words));
  };
  return {bins.size, of_team(bins.mass_low), of_team(bins.mass_high), of_team(bins.count)};
}

// By every block, before a barrier of the team.
template <bool kTeam>
__device__ __forceinline__ void clear_of_team(const Team<kTeam>& team, const Memory& memory,
                                              const Bins& bins) {
  clear(bins);
  if (team.leads() && team.is_portable()) clear(sum_of_peers(team, memory, bins));
}

// By a block that does not lead, when its own histogram is complete.
template <bool kTeam>
__device__ __forceinline__ void add_to_leader(const Team<kTeam>& team, const Memory& memory,
                                              const Bins& bins) {
  add(bins, sum_of_peers(team, memory, bins));
}

// By every block, after a barrier of the team; then the leader has the sum.
template <bool kTeam>
__device__ __forceinline__ void collect_in_leader(const Team<kTeam>& team, const Memory& memory,
                                                  const Bins& bins) {
  if (!team.leads() || !team.is_portable()) return;
  add(sum_of_peers(team, memory, bins), bins);
  gpu::block_barrier();
}

__device__ __forceinline__ bool has_leading_digits(uint32_t key, const Digit& digit) {
  return key >> (digit.leading_shift - 1) >> 1 == digit.leading;  // the shift may be by 32
}

__device__ __forceinline__ uint32_t bin_of(uint32_t key, const Digit& digit) {
  return key >> digit.shift & ((1u << digit.bits()) - 1);
}

}  // namespace autodeco::cuda
