// top_k and top_p together, where top_k is more than the candidate list holds: two searches of the
// row that share its reads.
//
//   read   top_k counts               top_p adds up masses
//   1      11 bits, while streaming
//   2      the next 11 (5)            12 bits
//   3      the last 10                                        32-bit keys only
//   4                                 the next 12             32-bit keys only
//   5 (3)                             the last 8 (4), per unit of segments
//
// What top_p wants of the mass is known only when top_k is done, but its first digit can be added
// up before.
#pragma once

#include "prefix.cuh"

namespace autodeco::cuda {

// The mass whose prefix top_p keeps, of a kept mass.
__device__ __forceinline__ uint64_t target_of(const Plan& plan, uint64_t mass) {
  const double wanted = ceil(static_cast<double>(plan.top_p) * static_cast<double>(mass));
  const uint64_t target = wanted < static_cast<double>(mass) ? static_cast<uint64_t>(wanted) : mass;
  return target > 0 ? target : 1;
}

// The mass that top_k keeps; the first digit of every token's mass is then in long_histogram().
// Tokens below `lowest` are in nobody's prefix.
template <typename Element, bool kTeam>
__device__ __forceinline__ uint64_t mass_of_top_k(const Leader<Element, kTeam>& leader,
                                                  const Plan& plan, float& lowest) {
  constexpr int kBits = Keys<Element>::kBits;
  const Memory& memory = leader.memory;
  Head* head = memory.head();
  Level& level = head->level;
  if (gpu::thread_index() == 0) level = {};
  gpu::block_barrier();
  find_level_of_histogram(memory.count_histogram(), kBins, Measure::kCount, plan.top_k, 0);
  const uint32_t first_digit = level.bin;
  Command command;
  command.action = Action::kHistogram;
  command.row_max = leader.row_max();
  command.digit = {0, kBits, kBits - kLongDigitBits};
  uint32_t key = first_digit;
  int shift = kBits - kDigitBits;
  lowest = command.lowest = Keys<Element>::logit(key << shift);
#pragma unroll 1
  while (shift > 0) {
    const int next_shift = shift > kDigitBits ? shift - kDigitBits : 0;
    command.count_digit = {key, shift, next_shift};
    command_all(leader, command);
    find_level_of_histogram(memory.count_histogram(), 1 << command.count_digit.bits(),
                            Measure::kCount, plan.top_k, 0);
    key = key << (shift - next_shift) | level.bin;
    shift = next_shift;
    command.digit = {};  // once is enough
  }
  // The levels hold the mass inside the first digit.
  uint64_t mass_above = 0;
  const Bins mass_bins = bins_of(memory.long_histogram());
  const int first_above = static_cast<int>((first_digit + 1) << (kLongDigitBits - kDigitBits));
#pragma unroll 1
  for (int bin = first_above + static_cast<int>(gpu::thread_index()); bin < kLongBins;
       bin += static_cast<int>(gpu::num_threads())) {
    mass_above += mass_of_bin(mass_bins, bin);
  }
  mass_above = block_sum(mass_above, head->scratch64);
  const uint64_t left = plan.top_k - level.count_above;
  const uint64_t kept_ties = left < level.count ? left : level.count;
  return mass_above + level.mass_above + kept_ties * leader.mass_of_key(key);
}

// The search that is left when both know all digits but the last of top_p's.
template <typename Element, bool kTeam>
__device__ __forceinline__ Search search_beside_top_k(const Leader<Element, kTeam>& leader,
                                                      const Plan& plan, uint32_t floor_key) {
  constexpr int kBits = Keys<Element>::kBits;
  const Memory& memory = leader.memory;
  Head* head = memory.head();
  Level& level = head->level;
  Command command;
  const uint64_t target = target_of(plan, mass_of_top_k(leader, plan, command.lowest));
  gpu::block_barrier();  // the level of top_k has been read
  if (gpu::thread_index() == 0) level = {};
  gpu::block_barrier();
  command.action = Action::kHistogram;
  command.row_max = leader.row_max();
  Digit& digit = command.digit;
  digit = {0, kBits, kBits - kLongDigitBits};
#pragma unroll 1
  for (;;) {
    int floor_bin = 0;
    if (has_leading_digits(floor_key, digit)) {
      floor_bin = static_cast<int>(bin_of(floor_key, digit));
    }
    find_level_of_sums(Measure::kMass, target, floor_bin);
    const uint32_t leading = digit.leading << kLongDigitBits | level.bin;
    if (level.held != 0 || digit.shift <= kLastBits<Element>) {
      digit.leading = leading;
      break;
    }
    digit = {leading, digit.shift, digit.shift - kLongDigitBits};
    command_all(leader, command);
  }
  Search search = {};
  search.target = target;
  search.measure = level.held != 0 ? Measure::kFloor : Measure::kMass;
  search.floor_key = floor_key;
  search.lowest = command.lowest;
  search.at_last_digit = true;
  search.leading = digit.leading;
  return search;
}

}  // namespace autodeco::cuda
