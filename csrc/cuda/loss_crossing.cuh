// The bin in which the running mass crosses P, when its tokens are not equal: how much of its mass
// is head, to the token. Sums are integers, so the order of threads does not matter.
#pragma once

#include "loss_lists.cuh"

namespace autodeco::cuda {

// Weight and distance of a token of the crossing bin below the bin's highest key, as integers.
struct CrossingToken {
  float highest_quarter;
  float bins_per_quarter;
  QuarterBits bits;

  __device__ __forceinline__ CrossingToken(float highest, float temperature, const BinGrid& grid)
      : highest_quarter(-0.25f * highest),
        bins_per_quarter(grid.bins_per_quarter),
        bits(temperature) {}
  __device__ __forceinline__ float below(float logit) const {
    return -bits.of(fmaf(logit, 0.25f, highest_quarter));
  }
  __device__ __forceinline__ uint64_t mass(float logit) const {
    return fixed_mass(gpu::exp2_approximate(-below(logit)));
  }
  // Of mass times distance, in units of the width of a bin.
  __device__ __forceinline__ uint64_t moment(float logit) const {
    const float distance = -fmaf(logit, 0.25f, highest_quarter) * bins_per_quarter;
    return fixed_mass(gpu::exp2_approximate(-below(logit)) * (distance < 1.0f ? distance : 1.0f));
  }
};

// One read that narrows the range of keys by 1024: counts the tokens of every sub-range, and goes
// on with the one in which the target is reached. Ends with a barrier.
template <typename Element>
__device__ __forceinline__ void narrow_crossing(const Row<Element>& row,
                                                const CrossingToken& token) {
  LossHead* head = LossMemory::head();
  LossSubBins* bins = LossMemory::sub_bins();
  const int threads = static_cast<int>(gpu::num_threads());
  for (int i = static_cast<int>(gpu::thread_index());
       i < static_cast<int>(sizeof(LossSubBins) / sizeof(uint32_t)); i += threads) {
    LossMemory::heavy_keys()[i] = 0;
  }
  const Crossing crossing = head->crossing;
  int shift = 0;
  while ((crossing.highest_key - crossing.lowest_key) >> shift >= kSubBins) ++shift;
  gpu::block_barrier();
  for_each_reaching(row, crossing.lowest_key, [&](const float* logits) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const uint32_t key = order_key(logits[i]);
      if (key < crossing.lowest_key || key > crossing.highest_key) continue;
      const uint32_t bin = (crossing.highest_key - key) >> shift;
      gpu::atomic_add(&bins->count[bin], 1u);
      atomic_add_mass(&bins->mass_low[bin], &bins->mass_high[bin], token.mass(logits[i]));
      atomic_add_mass(&bins->moment_low[bin], &bins->moment_high[bin], token.moment(logits[i]));
    }
  });
  gpu::block_barrier();
  const auto mass_of = [&](int bin) {
    return static_cast<uint64_t>(bins->mass_high[bin]) << 32 | bins->mass_low[bin];
  };
  const auto moment_of = [&](int bin) {
    return static_cast<uint64_t>(bins->moment_high[bin]) << 32 | bins->moment_low[bin];
  };
  const int share = static_cast<int>(kSubBins / gpu::num_threads());
  const int first = static_cast<int>(gpu::thread_index()) * share;
  uint64_t mass = 0;
  uint64_t moment = 0;
#pragma unroll 1
  for (int bin = first; bin < first + share; ++bin) {
    mass += mass_of(bin);
    moment += moment_of(bin);
  }
  uint64_t mass_total;
  uint64_t moment_total;
  uint64_t mass_before =
      crossing.head_mass + block_inclusive_sum(mass, head->scratch64, &mass_total) - mass;
  uint64_t moment_before =
      crossing.head_moment + block_inclusive_sum(moment, head->scratch64, &moment_total) - moment;
  uint64_t target = crossing.target;
  uint64_t bin_mass = crossing.bin_mass;
  if (bin_mass == 0) {  // the first read sees the whole bin
    bin_mass = mass_total;
    target = static_cast<uint64_t>(crossing.room * static_cast<double>(bin_mass));
  }
#pragma unroll 1
  for (int bin = first; bin < first + share; ++bin) {
    const uint64_t bin_mass_before = mass_before;
    const uint64_t bin_moment_before = moment_before;
    mass_before += mass_of(bin);
    moment_before += moment_of(bin);
    if (mass_before <= target || bin_mass_before > target) continue;
    Crossing& next = head->crossing;
    next.count = bins->count[bin];
    next.highest_key = crossing.highest_key - (static_cast<uint32_t>(bin) << shift);
    const uint32_t rest = next.highest_key - crossing.lowest_key;
    const uint32_t length = (1u << shift) - 1;
    next.lowest_key = next.highest_key - (length < rest ? length : rest);
    next.target = target;
    next.bin_mass = bin_mass;
    next.range_mass = mass_of(bin);
    next.range_moment = moment_of(bin);
    next.head_mass = bin_mass_before;
    next.head_moment = bin_moment_before;
  }
  gpu::block_barrier();
}

// The head's tokens of a range whose tokens are taken for equal. By one thread.
__device__ __forceinline__ void split_equals(Crossing& crossing, uint64_t mass, uint64_t moment,
                                             uint32_t count, bool exclusive) {
  const uint64_t one = mass / count;
  uint64_t number = one == 0 ? count : (crossing.target - crossing.head_mass) / one + exclusive;
  if (number > count) number = count;
  if (crossing.lowest_key == crossing.highest_key) {
    crossing.edge_key = crossing.lowest_key;
    crossing.edge_count = static_cast<uint32_t>(number);
  }
  const double share = static_cast<double>(number) / count;
  crossing.head_mass += static_cast<uint64_t>(share * static_cast<double>(mass));
  crossing.head_moment += static_cast<uint64_t>(share * static_cast<double>(moment));
}

// What of the bin's mass is head, and not below the range that the rest of it lies in.
__device__ __forceinline__ uint64_t target_of(const Crossing& crossing, uint64_t bin_mass) {
  const uint64_t target = static_cast<uint64_t>(crossing.room * static_cast<double>(bin_mass));
  return target < crossing.head_mass ? crossing.head_mass : target;
}

// The head of a range that was not gathered, left in head()->crossing. By one thread.
__device__ __forceinline__ void split_counted(bool exclusive) {
  Crossing& crossing = LossMemory::head()->crossing;
  if (crossing.bin_mass == 0) return;  // nothing was counted
  crossing.target = target_of(crossing, crossing.bin_mass);
  split_equals(crossing, crossing.range_mass, crossing.range_moment, crossing.count, exclusive);
}

// The head of the range whose keys have been gathered, left in head()->crossing without a barrier.
__device__ __forceinline__ void split_gathered(const CrossingToken& token, bool exclusive) {
  LossHead* head = LossMemory::head();
  const Crossing crossing = head->crossing;
  const auto sum = [&](uint32_t lowest, auto measure) {
    uint64_t result = 0;
    for (uint32_t i = gpu::thread_index(); i < crossing.count; i += gpu::num_threads()) {
      const uint32_t key = LossMemory::gathered_keys()[i];
      if (key >= lowest) result += measure(logit_of_key(key));
    }
    return block_sum(result);
  };
  const auto mass = [&](float logit) { return token.mass(logit); };
  const auto moment = [&](float logit) { return token.moment(logit); };
  // Where nothing was counted the range is the whole bin.
  const uint64_t bin_mass = crossing.bin_mass != 0 ? crossing.bin_mass : sum(0u, mass);
  const uint64_t target = target_of(crossing, bin_mass);
  // The highest key from which on the mass exceeds the target, or the lowest there is.
  uint32_t low = crossing.lowest_key;
  uint32_t high = crossing.highest_key;
#pragma unroll 1
  while (low < high) {
    const uint32_t middle = high - (high - low) / 2;
    if (crossing.head_mass + sum(middle, mass) > target) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const uint64_t mass_above = sum(low + 1, mass);
  const uint64_t moment_above = sum(low + 1, moment);
  const uint64_t count =
      sum(low, [](float) { return uint64_t{1}; }) - sum(low + 1, [](float) { return uint64_t{1}; });
  if (gpu::thread_index() == 0) {
    Crossing& split = head->crossing;
    split.target = target;
    split.bin_mass = bin_mass;
    split.head_mass += mass_above;
    split.head_moment += moment_above;
    if (count != 0 && split.head_mass <= target) {
      const float logit = logit_of_key(low);
      split.lowest_key = split.highest_key = low;
      split_equals(split, count * token.mass(logit), count * token.moment(logit),
                   static_cast<uint32_t>(count), exclusive);
    }
  }
}

}  // namespace autodeco::cuda
