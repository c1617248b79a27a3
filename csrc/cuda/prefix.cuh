// The weighted radix select: the shortest prefix of a row's order that reaches a count or a mass,
// found digit by digit in the candidate list or in the row.
#pragma once

#include "radix.cuh"

namespace autodeco::cuda {

struct KeptSet {
  uint32_t key;  // of the last kept token
  uint32_t kept_ties;
  uint32_t ties;  // tokens with that key
  int last_tie;   // those are kept up to this column
  uint64_t count;
  uint64_t mass;

  __device__ __forceinline__ bool contains(uint32_t token_key, int column) const {
    return token_key > key || (token_key == key && column <= last_tie);
  }
};

// The part of a block in the command that was announced.
template <typename Element, bool kTeam>
__device__ AUTODECO_CALLED void execute() {
  const Leader<Element, kTeam>& block = leader_of_block<Element, kTeam>();
  const Row<Element> row = block.row;
  const Team<kTeam> team = block.team;
  const Scaling scaling = block.scaling;
  const Memory memory = block.memory;
  const Command command = memory.state()->command;
  if (command.action == Action::kHistogram) {
    histogram_of_row(row, team, command, scaling, memory);
  } else if (command.action == Action::kGather) {
    gather_candidates(row, team, command, memory);
  } else if (command.action == Action::kSubHistogram) {
    sub_histogram_of_row(row, team, command, scaling, memory);
  }
}

// Tells every block what to do, and makes the leader take part in it.
template <typename Element, bool kTeam>
__device__ __forceinline__ void command_all(const Leader<Element, kTeam>& leader,
                                            const Command& command) {
  leader.team.announce(command);
  leader.team.barrier();
  execute<Element, kTeam>();
}

// The shortest prefix that reaches the target.
template <typename Element, bool kTeam>
__device__ __forceinline__ KeptSet find_prefix(const Leader<Element, kTeam>& leader,
                                               const Search& next) {
  constexpr int kBits = Keys<Element>::kBits;
  const Memory& memory = leader.memory;
  // Read from shared memory where it is needed: it would not fit the registers.
  const Search& search = memory.head()->search;
  Measure measure = next.measure;
  uint32_t leading = 0;  // digits of the key that are decided
  int leading_shift = kBits;
  Level& level = memory.head()->level;
  gpu::block_barrier();  // an earlier search and its level have been read
  if (gpu::thread_index() == 0) {
    memory.head()->search = next;
    level = {};
  }
  gpu::block_barrier();
#pragma unroll 1
  while (leading_shift > 0) {
    const bool from_row = !search.list.complete;
    if (from_row && measure == Measure::kFloor) {  // all digits but the last are known
      leading_shift = kLastBits<Element>;
      leading = search.floor_key >> kLastBits<Element>;
    } else if (from_row && search.at_last_digit) {
      leading_shift = kLastBits<Element>;
      leading = search.leading;
    }
    Command command;
    const int bits = from_row ? kLongDigitBits : kDigitBits;
    const int shift = leading_shift > bits ? leading_shift - bits : 0;
    command.digit = {leading, leading_shift, shift};
    command.measure = measure;
    command.action = shift == 0 ? Action::kSubHistogram : Action::kHistogram;
    command.row_max = leader.row_max();
    command.lowest = search.lowest;
    command.gathers = search.gathers;
    const bool reads = from_row && search.counted_shift != leading_shift;
    if (!from_row) {
      histogram_of_list<Element>(command.digit);
    } else if (reads) {
      command_all(leader, command);
    }
    int floor_bin = 0;
    if (has_leading_digits(search.floor_key, command.digit)) {
      floor_bin = static_cast<int>(bin_of(search.floor_key, command.digit));
    }
    if (from_row && shift == 0) {
      const LastDigit digit = memory.last_digit<Element>();
      const int num_units = leader.row.num_units(digit.unit_shift);
      uint64_t mass_above = 0;
#pragma unroll 1
      for (int unit = static_cast<int>(gpu::thread_index()); unit < num_units;
           unit += static_cast<int>(gpu::num_threads())) {
        mass_above += memory.segment_mass()[unit];
      }
      mass_above = block_sum(mass_above, memory.head()->scratch64);
      if (gpu::thread_index() == 0) {
        level = {0, memory.state()->count_above, mass_above, 0, 0, 0};
        memory.head()->mass_above = mass_above;
      }
      if (reads) add_up_sub_counts(memory, digit, num_units);
      gpu::block_barrier();
      const auto count_of = [&](int bin) { return memory.sub_totals()[bin]; };
      find_level(1 << digit.bits, measure, search.target, floor_bin, count_of, [&](int bin) {
        const uint32_t count = count_of(bin);
        const uint32_t key = leading << digit.bits | static_cast<uint32_t>(bin);
        return count == 0 ? uint64_t{0} : count * leader.mass_of_key(key);
      });
    } else if (from_row) {
      find_level_of_sums(measure, search.target, floor_bin);
    } else {
      find_level_of_histogram(memory.histogram(), 1 << command.digit.bits(), measure, search.target,
                              floor_bin);
    }
    if (level.held != 0) measure = Measure::kFloor;
    leading = leading << (leading_shift - shift) | level.bin;
    leading_shift = shift;
  }
  KeptSet kept = {};
  kept.key = leading;
  kept.ties = level.count;
  const uint64_t tie_mass = leader.mass_of_key(kept.key);
  uint64_t needed = level.count;
  if (measure == Measure::kCount) {
    needed = search.target - level.count_above;
  } else if (measure == Measure::kMass && tie_mass > 0) {
    // Rounded up, without a sum beyond 64 bits.
    needed = (search.target - level.mass_above - 1) / tie_mass + 1;
  }
  kept.kept_ties = needed < level.count ? static_cast<uint32_t>(needed) : level.count;
  kept.count = level.count_above + kept.kept_ties;
  kept.mass = level.mass_above + kept.kept_ties * tie_mass;
  return kept;
}

}  // namespace autodeco::cuda
