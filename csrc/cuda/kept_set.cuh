// The kept set of a row. Every filter keeps a prefix of the total order (logit descending, index
// ascending), so it is described by the key of its last token and, among equals, the last index.
//
// Candidates in shared memory are used where they provably hold the whole kept set; where not, the
// row is read again, one histogram per digit. Both add the same integers, so which of them ran
// cannot be seen in the result.
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

// What the leader works with.
template <typename Element, bool kTeam>
struct Leader {
  const Row<Element>& row;
  const Team<kTeam>& team;
  const Scaling& scaling;
  const Memory& memory;
  float row_max;
  CandidateList list;

  __device__ __forceinline__ uint64_t mass_of_key(uint32_t key) const {
    return scaling.mass(Keys<Element>::logit(key), row_max);
  }
};

// Tells every block what to do, and makes the leader take part in it.
template <typename Element, bool kTeam>
__device__ __forceinline__ void execute(const Row<Element>& row, const Team<kTeam>& team,
                                        const Command& command, const Scaling& scaling,
                                        const Memory& memory) {
  if (command.action == Action::kHistogram) {
    histogram_of_row(row, team, command, scaling, memory);
  } else if (command.action == Action::kSubHistogram) {
    sub_histogram_of_row(row, team, command, scaling, memory);
  }
}

template <typename Element, bool kTeam>
__device__ __forceinline__ void command_all(const Leader<Element, kTeam>& leader,
                                            const Command& command) {
  leader.team.announce(leader.memory.head(), command);
  leader.team.barrier();
  execute(leader.row, leader.team, command, leader.scaling, leader.memory);
}

// The shortest prefix that reaches `target`, but no token below `floor_key`.
template <typename Element, bool kTeam>
__device__ __forceinline__ KeptSet find_prefix(const Leader<Element, kTeam>& leader,
                                               Measure measure, uint64_t target,
                                               uint32_t floor_key) {
  constexpr int kBits = Keys<Element>::kBits;
  constexpr int kSubBits = 5;
  static_assert(1 << kSubBits == kSubKeys);
  const Memory& memory = leader.memory;
  Command command;
  command.leading_shift = kBits;
  command.row_max = leader.row_max;
  Level& level = memory.head()->level;
  gpu::block_barrier();                      // the level of an earlier search has been read
  if (gpu::thread_index() == 0) level = {};  // every histogram has barriers before it is read
#pragma unroll 1
  while (command.leading_shift > 0) {
    const bool from_row = !leader.list.complete;
    if (from_row && measure == Measure::kFloor) {  // all digits but the last are known
      command.leading_shift = kSubBits;
      command.leading = floor_key >> kSubBits;
    }
    // 32 bits are 11 + 11 + 5 + 5, 16 bits are 11 + 5.
    const int left = command.leading_shift;
    command.shift = left == 32 ? 21 : left == 21 ? 10 : left > kSubBits ? kSubBits : 0;
    command.action = command.shift == 0 ? Action::kSubHistogram : Action::kHistogram;
    if (from_row) {
      command_all(leader, command);
    } else {
      histogram_of_list<Element>(leader.list, command, leader.scaling, memory);
    }
    int floor_bin = 0;
    if (has_leading_digits(floor_key, command)) {
      floor_bin = static_cast<int>(digit_of(floor_key, command));
    }
    if (from_row && command.shift == 0) {
      uint64_t mass_above = 0;
      for (int segment = static_cast<int>(gpu::thread_index()); segment < leader.row.num_segments;
           segment += static_cast<int>(gpu::num_threads())) {
        mass_above += memory.segment_mass()[segment];
      }
      mass_above = block_reduce(mass_above, memory.head()->scratch64, uint64_t{0},
                                [](uint64_t a, uint64_t b) { return a + b; });
      if (gpu::thread_index() == 0) {
        level = {0, memory.head()->count_above, mass_above, 0, 0};
      }
      const auto count_of = [&](int bin) { return memory.head()->sub_count[bin]; };
      if (gpu::thread_index() < kSubKeys) {
        uint32_t count = 0;
        for (int segment = 0; segment < leader.row.num_segments; ++segment) {
          count += sub_count(memory, segment, gpu::thread_index());
        }
        memory.head()->sub_count[gpu::thread_index()] = count;
      }
      gpu::block_barrier();
      find_level(
          kSubKeys, measure, target, floor_bin, count_of,
          [&](int bin) {
            const uint32_t count = count_of(bin);
            const uint32_t key = command.leading << kSubBits | static_cast<uint32_t>(bin);
            return count == 0 ? uint64_t{0} : count * leader.mass_of_key(key);
          },
          memory.head());
    } else {
      find_level(
          1 << (command.leading_shift - command.shift), measure, target, floor_bin,
          [&](int bin) { return memory.histogram()->count[bin]; },
          [&](int bin) {
            return static_cast<uint64_t>(memory.histogram()->mass_high[bin]) << 32 |
                   memory.histogram()->mass_low[bin];
          },
          memory.head());
    }
    if (level.held != 0) measure = Measure::kFloor;
    command.leading = command.leading << (command.leading_shift - command.shift) | level.bin;
    command.leading_shift = command.shift;
  }
  KeptSet kept = {};
  kept.key = command.leading;
  kept.ties = level.count;
  const uint64_t tie_mass = leader.mass_of_key(kept.key);
  uint64_t needed = level.count;
  if (measure == Measure::kCount) {
    needed = target - level.count_above;
  } else if (measure == Measure::kMass && tie_mass > 0) {
    needed = (target - level.mass_above + tie_mass - 1) / tie_mass;
  }
  kept.kept_ties = needed < level.count ? static_cast<uint32_t>(needed) : level.count;
  kept.count = level.count_above + kept.kept_ties;
  kept.mass = level.mass_above + kept.kept_ties * tie_mass;
  return kept;
}

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

// Brings the candidates of all blocks to the leader. What is above the threshold is complete.
template <bool kTeam>
__device__ __forceinline__ CandidateList merge_candidates(const Team<kTeam>& team, const Plan& plan,
                                                          float max, const Memory& memory) {
  Head* head = memory.head();
  CandidateList list = {};
  uint32_t narrowing = head->narrowing;
  unsigned size = head->num_candidates;
  list.complete = size <= kListCapacity;
  for (unsigned rank = 1; rank < team.size; ++rank) {
    const Head* peer = gpu::cluster_peer(head, rank);
    const unsigned peer_size = peer->num_candidates;
    narrowing = narrowing > peer->narrowing ? narrowing : peer->narrowing;
    if (peer_size > kListCapacity) list.complete = false;
  }
  list.threshold = max - narrowed(plan.window, narrowing);
  if (kTeam && list.complete) {
    for (unsigned rank = 1; rank < team.size; ++rank) {
      const unsigned peer_size = gpu::cluster_peer(head, rank)->num_candidates;
      const uint64_t* peer_list = gpu::cluster_peer(memory.list(), rank);
      for (unsigned i = gpu::thread_index(); i < peer_size && size + peer_size <= kListCapacity;
           i += gpu::num_threads()) {
        memory.list()[size + i] = peer_list[i];
      }
      size += peer_size;
    }
    list.complete = size <= kListCapacity;
  }
  list.size = size;
  gpu::block_barrier();
  return list;
}

// Column of the `wanted`-th token (from 1) with this key, by all threads of the leader.
// memory.segment_ties() holds the tokens with this key of every segment.
template <typename Element, bool kTeam>
__device__ __forceinline__ int column_of_tie(const Leader<Element, kTeam>& leader, uint32_t key,
                                             uint32_t wanted) {
  const Memory& memory = leader.memory;
  Head* head = memory.head();
  uint32_t carried = 0;
  for (int begin = 0; begin < leader.row.num_segments;
       begin += static_cast<int>(gpu::num_threads())) {
    const int segment = begin + static_cast<int>(gpu::thread_index());
    const uint32_t ties = segment < leader.row.num_segments ? memory.segment_ties()[segment] : 0;
    uint32_t total;
    const uint32_t upto = carried + block_inclusive_sum(ties, head->scratch32, &total);
    if (upto - ties < wanted && wanted <= upto) {
      head->found = segment;
      head->count_above = wanted - (upto - ties);
    }
    carried += total;
  }
  gpu::block_barrier();
  const int segment = head->found;
  uint32_t left = head->count_above;
  gpu::block_barrier();
  if (gpu::warp_index() == 0) {
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
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

// Fills last_tie. Where the row was read, memory.sub_counts() is of the digit the key ends with.
template <typename Element, bool kTeam>
__device__ __forceinline__ void place_last_tie(const Leader<Element, kTeam>& leader,
                                               KeptSet& kept) {
  const Memory& memory = leader.memory;
  const int num_segments = leader.row.num_segments;
  kept.last_tie = leader.row.columns;
  const int thread = static_cast<int>(gpu::thread_index());
  for (int segment = thread; segment < num_segments;
       segment += static_cast<int>(gpu::num_threads())) {
    memory.segment_ties()[segment] =
        leader.list.complete ? 0 : sub_count(memory, segment, kept.key % kSubKeys);
  }
  gpu::block_barrier();
  if (kept.kept_ties == kept.ties) return;
  if (leader.list.complete) {
    for_each_candidate<Element>(leader.list, memory, [&](uint32_t key, int column) {
      if (key == kept.key) gpu::atomic_add(&memory.segment_ties()[column / kSegment], 1u);
    });
    gpu::block_barrier();
  }
  kept.last_tie = column_of_tie(leader, kept.key, kept.kept_ties);
}

// The tokens that top_k, top_p and min_p leave, in that order, by the leader of a row that keeps
// more than one token and not all by its parameters.
template <typename Element, bool kTeam>
__device__ __forceinline__ KeptSet find_kept_set(Leader<Element, kTeam>& leader, const Plan& plan,
                                                 const Summary& summary) {
  const Memory& memory = leader.memory;
  uint32_t floor_key = 0;
  if (plan.min_p > 0.0f) {
    floor_key = key_of_min_p<Element>(summary.max, plan.temperature, plan.min_p);
  }
  const auto target_of = [&](uint64_t mass) {
    const double wanted = ceil(static_cast<double>(plan.top_p) * static_cast<double>(mass));
    const uint64_t target =
        wanted < static_cast<double>(mass) ? static_cast<uint64_t>(wanted) : mass;
    return target > 0 ? target : 1;
  };
  const bool limits_mass = plan.top_p < 1.0f;
  uint64_t target = target_of(summary.mass);
  Measure first = Measure::kFloor;
  if (limits_mass) first = Measure::kMass;
  if (plan.top_k != 0) first = Measure::kCount;

  leader.list = merge_candidates(leader.team, plan, summary.max, memory);
  if (leader.list.complete) {
    uint64_t mass = 0;
    uint64_t count = 0;
    for_each_candidate<Element>(leader.list, memory, [&](uint32_t key, int) {
      mass += leader.mass_of_key(key);
      ++count;
    });
    const auto add = [](uint64_t a, uint64_t b) { return a + b; };
    mass = block_reduce(mass, memory.head()->scratch64, uint64_t{0}, add);
    count = block_reduce(count, memory.head()->scratch64, uint64_t{0}, add);
    const bool holds_floor =
        floor_key != 0 && Keys<Element>::logit(floor_key) >= leader.list.threshold;
    bool enough = holds_floor;
    if (first == Measure::kMass && mass >= target) {
      enough = true;
    } else if (first == Measure::kCount) {
      enough = count >= plan.top_k || (holds_floor && !limits_mass);
    }
    // Where the target lies below a list that holds the floor, the floor decides.
    if (enough && ((first == Measure::kMass && mass < target) ||
                   (first == Measure::kCount && count < plan.top_k))) {
      first = Measure::kFloor;
    }
    leader.list.complete = enough;
  }
  KeptSet kept = {};
  if (first == Measure::kCount) target = plan.top_k;
  // At most two rounds: top_p takes its share of the mass that top_k left.
#pragma unroll 1
  for (bool again = true; again;) {
    again = first == Measure::kCount && limits_mass;
    kept = find_prefix(leader, first, target, again ? 0 : floor_key);
    first = Measure::kMass;
    target = target_of(kept.mass);
  }
  place_last_tie(leader, kept);
  return kept;
}

}  // namespace autodeco::cuda
