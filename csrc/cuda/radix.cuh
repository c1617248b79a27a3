// One digit of the weighted radix select over order keys: its histogram, and the bin in which a
// count or a mass is reached.
#pragma once

#include "candidates.cuh"

namespace autodeco::cuda {

// Of the list of the last search, by the leader alone; ends with a barrier.
template <typename Element>
__device__ AUTODECO_CALLED void histogram_of_list(Digit digit) {
  const Digest& row = digest_of_block();
  const Memory& memory = row.memory;
  const Bins bins = bins_of(memory.histogram());
  clear(bins);
  gpu::block_barrier();
  PendingBin pending;
  for_each_candidate(memory.head()->search.list, memory, [&](uint32_t key, int) {
    if (!has_leading_digits(key, digit)) return;
    pending.add(bins, bin_of(key, digit), row.mass_of(Keys<Element>::logit(key)));
  });
  pending.flush(bins);
  gpu::block_barrier();
}

// By every block on its segments; the sums are in the leader after the barrier this ends with.
template <typename Element, bool kTeam>
__device__ __forceinline__ void histogram_of_row(const Row<Element>& row, const Team<kTeam>& team,
                                                 const Command& command, const Scaling& scaling,
                                                 const Memory& memory) {
  const Bins bins = bins_of(memory.long_histogram());
  const Bins count_bins = bins_of(memory.count_histogram());
  const bool adds = command.digit.leading_shift != 0;
  const bool counts = command.count_digit.leading_shift != 0;
  if (adds) clear_of_team(team, memory, bins);
  if (counts) clear_of_team(team, memory, count_bins);
  team.barrier();
  PendingBin pending;
  PendingBin pending_count;
  bool list_is_full = !(command.threshold < kInfinity);
  for (int segment = team.first_segment + static_cast<int>(gpu::warp_index());
       segment < team.last_segment; segment += num_warps()) {
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
        if (logits[i] == -kInfinity) continue;
        const uint32_t key = Keys<Element>::of(logits[i]);
        const bool added = adds && has_leading_digits(key, command.digit);
        const bool counted = counts && has_leading_digits(key, command.count_digit);
        if (!added && !counted) continue;
        // Beside another digit masses are measured; for counts alone no mass is computed.
        const uint64_t amount =
            command.measure == Measure::kCount ? 1 : scaling.mass(logits[i], command.row_max);
        if (added) pending.add(bins, bin_of(key, command.digit), amount);
        if (counted) pending_count.add(count_bins, bin_of(key, command.count_digit), amount);
      }
    }
  }
  pending.flush(bins);
  pending_count.flush(count_bins);
  if (!team.leads()) {
    gpu::block_barrier();
    if (adds) add_to_leader(team, memory, bins);
    if (counts) add_to_leader(team, memory, count_bins);
  }
  team.barrier();
  if (adds) collect_in_leader(team, memory, bins);
  if (counts) collect_in_leader(team, memory, count_bins);
}

// The last digit, for which the row is read only once: of every unit of segments the mass above the
// leading digits, and the count of each of the keys that have them; if the command says so, also
// the tokens above the leading digits as the leader's list. Ends with a barrier.
template <typename Element, bool kTeam>
__device__ __forceinline__ void sub_histogram_of_row(const Row<Element>& row,
                                                     const Team<kTeam>& team,
                                                     const Command& command, const Scaling& scaling,
                                                     const Memory& memory) {
  const LastDigit digit = memory.last_digit<Element>();
  if (team.leads()) {
    const int num_units = row.num_units(digit.unit_shift);
    const int thread = static_cast<int>(gpu::thread_index());
    const int threads = static_cast<int>(gpu::num_threads());
    // The totals, too, stand in front of the counts.
    uint32_t* words = memory.sub_totals();
    const int num_words = (1 << digit.bits) + (num_units << (digit.bits - 1));
#pragma unroll 1
    for (int i = thread; i < num_words; i += threads) words[i] = 0;
#pragma unroll 1
    for (int unit = thread; unit < num_units; unit += threads) memory.segment_mass()[unit] = 0;
    if (gpu::thread_index() == 0) {
      memory.state()->count_above = 0;
      memory.state()->num_candidates = 0;
    }
  }
  team.barrier();
  uint32_t* sub_counts = team.in_leader(memory.sub_counts(digit));
  const uint32_t decided = command.digit.leading;
  const float lowest_above = Keys<Element>::logit((decided + 1) << digit.bits);
  uint32_t count_above = 0;
  for (int segment = team.first_segment + static_cast<int>(gpu::warp_index());
       segment < team.last_segment; segment += num_warps()) {
    if (memory.segment_max(segment) < command.lowest) continue;
    const bool reaches = lane_reaches(memory, segment, command.lowest);
    const int unit = segment >> digit.unit_shift;
    uint64_t mass_above = 0;
    uint32_t pending_key = 0;
    uint32_t pending_count = 0;
    const auto flush = [&]() {
      if (pending_count == 0) return;
      gpu::atomic_add(&sub_counts[(unit << (digit.bits - 1)) + static_cast<int>(pending_key / 2)],
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
        const uint32_t leading = key >> digit.bits;
        if (leading > decided) {
          ++count_above;
          mass_above += scaling.mass(logits[i], command.row_max);
        } else if (leading == decided) {
          const uint32_t sub_key = bin_of(key, command.digit);
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
    mass_above = warp_sum(mass_above);
    if (gpu::lane_index() == 0 && mass_above != 0) {
      uint32_t* words = reinterpret_cast<uint32_t*>(&team.in_leader(memory.segment_mass())[unit]);
      atomic_add_mass(words, words + 1, mass_above);
    }
  }
  count_above = warp_sum(count_above);
  if (gpu::lane_index() == 0 && count_above != 0) {
    gpu::atomic_add(team.in_leader(&memory.state()->count_above), count_above);
  }
  team.barrier();
}

// Of the units that the masses and ties of a search are kept for: those of the last digit, or
// single segments where the list was enough.
template <typename Element>
__device__ __forceinline__ int unit_shift_of(const Memory& memory) {
  if constexpr (Keys<Element>::kBits == 16) return 0;
  return memory.head()->search.list.complete ? 0 : memory.last_digit<Element>().unit_shift;
}

__device__ __forceinline__ uint32_t sub_count(const Memory& memory, const LastDigit& digit,
                                              int unit, uint32_t sub_key) {
  const uint32_t word =
      memory.sub_counts(digit)[(unit << (digit.bits - 1)) + static_cast<int>(sub_key / 2)];
  return word >> (sub_key % 2 * 16) & 0xffffu;
}

// Fills memory.sub_totals(), by the leader; ends without a barrier.
__device__ __forceinline__ void add_up_sub_counts(const Memory& memory, const LastDigit& digit,
                                                  int num_units) {
  const int words = 1 << (digit.bits - 1);
  uint32_t* totals = memory.sub_totals();
#pragma unroll 1
  for (int i = static_cast<int>(gpu::thread_index()); i < num_units * words;
       i += static_cast<int>(gpu::num_threads())) {
    const uint32_t word = memory.sub_counts(digit)[i];
    uint32_t* total = totals + (i & (words - 1)) * 2;
    if ((word & 0xffffu) != 0) gpu::atomic_add(total, word & 0xffffu);
    if (word >> 16 != 0) gpu::atomic_add(total + 1, word >> 16);
  }
}

// Finds the bin, from the highest downwards, in which the count or the mass reaches `target` (or
// the last that holds anything), but not one below `floor_bin`. head->level comes in as what lies
// above all bins and goes out as the bin found. Ends with a barrier.
template <typename CountOf, typename MassOf>
__device__ __forceinline__ void find_level(int num_bins, Measure measure, uint64_t target,
                                           int floor_bin, CountOf count_of, MassOf mass_of) {
  Head* head = head_of_block();
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

__device__ AUTODECO_CALLED void find_level_of_histogram(Histogram* histogram, int num_bins,
                                                        Measure measure, uint64_t target,
                                                        int floor_bin) {
  gpu::promise_num_threads<kThreads>();
  const Bins bins = bins_of(histogram);
  find_level(
      num_bins, measure, target, floor_bin, [&](int bin) { return bins.count[bin]; },
      [&](int bin) { return mass_of_bin(bins, bin); });
}

// The same in the long histogram, which holds what is measured and nothing else; so does the level.
__device__ AUTODECO_CALLED void find_level_of_sums(Measure measure, uint64_t target,
                                                   int floor_bin) {
  const Bins bins = bins_of(digest_of_block().memory.long_histogram());
  const bool counts = measure == Measure::kCount;
  find_level(
      kLongBins, measure, target, floor_bin,
      [&](int bin) { return counts ? bins.mass_low[bin] : 0u; },
      [&](int bin) { return counts ? uint64_t{0} : mass_of_bin(bins, bin); });
}

}  // namespace autodeco::cuda
