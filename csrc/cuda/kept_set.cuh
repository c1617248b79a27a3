// The kept set of a row. Every filter keeps a prefix of the total order (logit descending, index
// ascending), so it is described by the key of its last token and, among equals, the last index.
//
// Candidates in shared memory are used where they provably hold the whole kept set; where not, the
// row is read again, one histogram per digit. Both add the same integers, so which of them ran
// cannot be seen in the result.
#pragma once

#include "two_searches.cuh"

namespace autodeco::cuda {

// Order key of the smallest logit whose probability is at least min_p times the largest. NaN
// patterns lie outside the range searched.
template <typename Element>
__device__ __forceinline__ uint32_t key_of_min_p(float max, float temperature, float min_p) {
  const double cut =
      static_cast<double>(max) + static_cast<double>(temperature) * log(static_cast<double>(min_p));
  uint32_t low = Keys<Element>::of(-kInfinity);
  uint32_t high = Keys<Element>::of(max);
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (static_cast<double>(Keys<Element>::logit(middle)) >= cut) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return high;
}

// Column of the `wanted`-th token (from 1) with this key, by all threads of the leader.
// memory.segment_ties() holds the tokens with this key of every unit of segments. Leaves
// head()->ties_of_found.
template <typename Element, bool kTeam>
__device__ __forceinline__ int column_of_tie(const Leader<Element, kTeam>& leader, uint32_t key,
                                             uint32_t wanted) {
  const Memory& memory = leader.memory;
  Head* head = memory.head();
  const int unit_shift = unit_shift_of<Element>(memory);
  const int num_units = leader.row.num_units(unit_shift);
  uint32_t carried = 0;
#pragma unroll 1
  for (int begin = 0; begin < num_units; begin += static_cast<int>(gpu::num_threads())) {
    const int unit = begin + static_cast<int>(gpu::thread_index());
    const uint32_t ties = unit < num_units ? memory.segment_ties()[unit] : 0;
    uint32_t total;
    const uint32_t upto = carried + block_inclusive_sum(ties, head->scratch32, &total);
    if (upto - ties < wanted && wanted <= upto) {
      head->found = unit;
      head->ties_of_found = wanted - (upto - ties);
    }
    carried += total;
  }
  gpu::block_barrier();
  const int segment = head->found << unit_shift;
  uint32_t left = head->ties_of_found;
  gpu::block_barrier();
  if (gpu::warp_index() == 0) {
    // Vectors of the segments behind the first are numbered on.
#pragma unroll 1
    for (int v = 0; v < kVectors << unit_shift && left != 0; ++v) {
      float logits[kVector];
      leader.row.load_vector(column_of(segment, v, 0), logits);
      uint32_t mine = 0;
#pragma unroll
      for (int i = 0; i < kVector; ++i) mine += Keys<Element>::of(logits[i]) == key;
      const uint32_t upto = warp_inclusive_sum(mine);
      uint32_t before = upto - mine;
      if (before < left && left <= upto) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          if (Keys<Element>::of(logits[i]) != key) continue;
          if (++before == left) head->found = column_of(segment, v, i);
        }
      }
      const uint32_t total = gpu::shuffle(upto, 31);
      left = total < left ? left - total : 0;
    }
  }
  gpu::block_barrier();
  return head->found;
}

// Fills last_tie. Where the row was read, memory.sub_counts() is of the digit that the key ends
// with.
template <typename Element, bool kTeam>
__device__ __forceinline__ void place_last_tie(const Leader<Element, kTeam>& leader,
                                               KeptSet& kept) {
  const Memory& memory = leader.memory;
  const Search& search = memory.head()->search;
  const LastDigit digit = memory.last_digit<Element>();
  const int num_units = leader.row.num_units(unit_shift_of<Element>(memory));
  const uint32_t sub_key = kept.key & ((1u << digit.bits) - 1);
  kept.last_tie = leader.row.columns;
  const int thread = static_cast<int>(gpu::thread_index());
#pragma unroll 1
  for (int unit = thread; unit < num_units; unit += static_cast<int>(gpu::num_threads())) {
    memory.segment_ties()[unit] =
        search.list.complete ? 0 : sub_count(memory, digit, unit, sub_key);
  }
  gpu::block_barrier();
  if (kept.kept_ties == kept.ties) return;
  if (search.list.complete) {
    for_each_candidate(search.list, memory, [&](uint32_t key, int column) {
      if (key == kept.key) gpu::atomic_add(&memory.segment_ties()[column / kSegment], 1u);
    });
    gpu::block_barrier();
  }
  kept.last_tie = column_of_tie(leader, kept.key, kept.kept_ties);
}

// From which logit on candidates are wanted, and whether they then surely hold the kept set.
struct Reach {
  float threshold;
  bool certain;
};

// The largest logits of the pieces are tokens of the row: where the k largest of them begin, there
// are k tokens, and where their masses reach the target, it is reached.
__device__ AUTODECO_CALLED Reach reach_of_maxima(Measure measure, uint64_t target) {
  const Digest& row = digest_of_block();
  const Memory& memory = row.memory;
  Head* head = memory.head();
  const int num_pieces = row.num_segments * kPieces;
  const int thread = static_cast<int>(gpu::thread_index());
  const int threads = static_cast<int>(gpu::num_threads());
  // Bins of the distance to the maximum: 64 in each octave from 2^-16 to 2^16.
  const auto bin_of = [&](float logit) {
    constexpr int kNearest = (127 - 16) * 64;
    const float distance = row.row_max() - logit;
    const int bin = static_cast<int>(std::bit_cast<uint32_t>(distance) >> 17) - kNearest;
    return bin < 0 ? kBins - 1 : bin < kBins ? kBins - 1 - bin : 0;
  };
  const Bins bins = bins_of(memory.histogram());
  clear(bins);
  if (thread == 0) head->level = {};
  gpu::block_barrier();
#pragma unroll 1
  for (int piece = thread; piece < num_pieces; piece += threads) {
    const float logit = memory.piece_max()[piece];
    if (logit == -kInfinity) continue;
    const int bin = bin_of(logit);
    gpu::atomic_add(&bins.count[bin], 1u);
    atomic_add_mass(&bins.mass_low[bin], &bins.mass_high[bin], row.mass_of(logit));
  }
  gpu::block_barrier();
  find_level_of_histogram(memory.histogram(), kBins, measure, target, 0);
  const Level& level = head->level;
  const uint64_t reached =
      measure == Measure::kCount ? level.count_above + level.count : level.mass_above + level.mass;
  const bool certain = reached >= target;
  float threshold = kInfinity;
#pragma unroll 1
  for (int piece = thread; piece < num_pieces; piece += threads) {
    const float logit = memory.piece_max()[piece];
    if (logit == -kInfinity || bin_of(logit) < static_cast<int>(level.bin)) continue;
    threshold = logit < threshold ? logit : threshold;
  }
  const auto smaller = [](float a, float b) { return a < b ? a : b; };
  return {block_reduce(threshold, head->scratch_float, kInfinity, smaller), certain};
}

// The other way round: what lies below the threshold is at most the mass of the segments that do
// not reach it, and in each of the others no more than what is left of its mass, nor than 1024
// tokens at the threshold. Whether the rest reaches the target.
__device__ AUTODECO_CALLED bool window_holds(float threshold, uint64_t target) {
  const Digest& row = digest_of_block();
  const Memory& memory = row.memory;
  const uint64_t most = kSegment * row.mass_of(threshold);
  uint64_t below = 0;
#pragma unroll 1
  for (int segment = static_cast<int>(gpu::thread_index()); segment < row.num_segments;
       segment += static_cast<int>(gpu::num_threads())) {
    uint64_t rest = memory.segment_mass()[segment];
    bool reaches = false;
    for (int piece = segment * kPieces; piece < (segment + 1) * kPieces; ++piece) {
      const float logit = memory.piece_max()[piece];
      if (logit < threshold) continue;
      reaches = true;
      const uint64_t mass = row.mass_of(logit);
      rest = rest > mass ? rest - mass : 0;
    }
    below += reaches && rest > most ? most : rest;
  }
  below = block_sum(below, memory.head()->scratch64);
  const uint64_t row_mass = memory.head()->summary.mass;
  const uint64_t rounding = row_mass >> 16;  // of the sums of segments, by far
  return below + rounding <= row_mass - target;
}

// Whether at most half of the row lies in pieces that reach the threshold.
__device__ AUTODECO_CALLED bool few_pieces_reach(float threshold) {
  const Digest& row = digest_of_block();
  const Memory& memory = row.memory;
  const int num_pieces = row.num_segments * kPieces;
  uint32_t count = 0;
#pragma unroll 1
  for (int piece = static_cast<int>(gpu::thread_index()); piece < num_pieces;
       piece += static_cast<int>(gpu::num_threads())) {
    count += memory.piece_max()[piece] >= threshold;
  }
  count = block_sum(count, memory.head()->scratch32);
  return 2 * static_cast<int>(count) <= num_pieces;
}

// Whether the candidates from the threshold on, which the leader has, hold the kept set.
template <typename Element, bool kTeam>
__device__ __forceinline__ void judge_list(const Leader<Element, kTeam>& leader, const Reach& reach,
                                           Search& search) {
  const Memory& memory = leader.memory;
  const unsigned size = memory.state()->num_candidates;
  search.list = {size <= kListCapacity, size};
  if (!search.list.complete || (reach.certain && search.floor_key == 0)) return;
  uint64_t mass = 0;
  for_each_candidate(search.list, memory,
                     [&](uint32_t key, int) { mass += leader.mass_of_key(key); });
  mass = block_sum(mass, memory.head()->scratch64);
  const uint64_t held = search.measure == Measure::kCount ? size : mass;
  if (search.measure == Measure::kFloor || held >= search.target) return;
  // Where the target lies below a list that holds the floor, the floor decides.
  search.list.complete =
      search.floor_key != 0 && Keys<Element>::logit(search.floor_key) >= reach.threshold;
  if (search.list.complete) search.measure = Measure::kFloor;
}

// Gathers the candidates if that is worth it.
template <typename Element, bool kTeam>
__device__ __forceinline__ void find_candidates(const Leader<Element, kTeam>& leader,
                                                const Plan& plan, Search& search) {
  const Memory& memory = leader.memory;
  Reach reach = {leader.row_max() - plan.window, false};
  if (search.measure != Measure::kFloor) {
    const Reach of_maxima = reach_of_maxima(search.measure, search.target);
    if (of_maxima.certain) {
      reach = of_maxima;
    } else if (search.measure == Measure::kMass) {
      reach.certain = window_holds(reach.threshold, search.target);
    }
  }
  if (search.floor_key != 0) {
    const float floor = Keys<Element>::logit(search.floor_key);
    if (!reach.certain || reach.threshold < floor) reach = {floor, true};
  }
  Command command;
  command.action = Action::kHistogram;
  command.measure = search.measure;
  command.digit = {0, Keys<Element>::kBits, Keys<Element>::kBits - kLongDigitBits};
  command.row_max = leader.row_max();
  command.threshold = reach.threshold;
  if (reach.certain) {
    search.lowest = command.lowest = reach.threshold;
    if (few_pieces_reach(reach.threshold)) command.action = Action::kGather;
  }
  if (command.action == Action::kHistogram) {
    // Without a target there is one read to make, and nothing to gain from a list.
    if (search.measure == Measure::kFloor) return;
    search.counted_shift = command.digit.leading_shift;
  }
  if (gpu::thread_index() == 0) memory.state()->num_candidates = 0;
  command_all(leader, command);
  judge_list(leader, reach, search);
}

// top_p takes its share of the mass that top_k left. Where the list was too short for top_k, no
// further read is needed if it has become one of what lies above the digit that was counted last:
// the new search ends either in that digit or in the list.
template <typename Element, bool kTeam>
__device__ __forceinline__ Search next_search(const Leader<Element, kTeam>& leader,
                                              const KeptSet& kept, uint64_t target) {
  const Head* head = leader.memory.head();
  Search search = head->search;
  search.measure = Measure::kMass;
  search.target = target;
  search.floor_key = search.next_floor;
  search.counted_shift = 0;
  if (search.list.complete) return search;
  search.leading = kept.key >> kLastBits<Element>;
  if (target > head->mass_above && search.floor_key >> kLastBits<Element> <= search.leading) {
    search.at_last_digit = true;
    search.counted_shift = kLastBits<Element>;
    return search;
  }
  search.list = {true, leader.memory.state()->count_above};
  if (target > head->mass_above) search.measure = Measure::kFloor;
  return search;
}

// The first search of the row, with what was gathered or counted for it.
template <typename Element, bool kTeam>
__device__ __forceinline__ Search first_search(const Leader<Element, kTeam>& leader,
                                               const Plan& plan, const Summary& summary) {
  const bool limits_mass = plan.top_p < 1.0f;
  const bool two_searches = plan.top_k != 0 && limits_mass;
  const uint32_t floor_key =
      plan.min_p > 0.0f ? key_of_min_p<Element>(summary.max, plan.temperature, plan.min_p) : 0;
  if (plan.needs_digit) return search_beside_top_k(leader, plan, floor_key);
  Search search = {};
  search.lowest = -kInfinity;
  search.measure = limits_mass ? Measure::kMass : Measure::kFloor;
  search.target = target_of(plan, summary.mass);
  if (plan.top_k != 0) {
    search.measure = Measure::kCount;
    search.target = plan.top_k;
  }
  (two_searches ? search.next_floor : search.floor_key) = floor_key;
  search.gathers = two_searches;
  find_candidates(leader, plan, search);
  return search;
}

// The tokens that top_k, top_p and min_p leave, in that order, by the leader of a row that keeps
// more than one token and not all by its parameters.
template <typename Element, bool kTeam>
__device__ __forceinline__ KeptSet find_kept_set(const Leader<Element, kTeam>& leader,
                                                 const Plan& plan, const Summary& summary) {
  Search search = first_search(leader, plan, summary);
  KeptSet kept = {};
#pragma unroll 1
  for (bool again = search.gathers;; again = false) {
    kept = find_prefix(leader, search);
    if (!again) break;
    search = next_search(leader, kept, target_of(plan, kept.mass));
  }
  place_last_tie(leader, kept);
  return kept;
}

}  // namespace autodeco::cuda
