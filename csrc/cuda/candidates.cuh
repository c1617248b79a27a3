// The candidate list in the leader's shared memory: tokens with a logit of at least some threshold.
#pragma once

#include "row_summary.cuh"

namespace autodeco::cuda {

// Calls visit(key, column) for every candidate.
template <typename Visit>
__device__ __forceinline__ void for_each_candidate(const CandidateList& list, const Memory& memory,
                                                   Visit visit) {
#pragma unroll 1
  for (unsigned i = gpu::thread_index(); i < list.size; i += gpu::num_threads()) {
    const uint64_t entry = memory.list()[i];
    visit(static_cast<uint32_t>(entry >> 32), static_cast<int>(static_cast<uint32_t>(entry)));
  }
}

// Whether the calling lane holds logits of a segment that may be `lowest` or more.
__device__ __forceinline__ bool lane_reaches(const Memory& memory, int segment, float lowest) {
  const int piece = static_cast<int>(gpu::lane_index()) / kPieceLanes;
  return memory.piece_max()[segment * kPieces + piece] >= lowest;
}

// A vector of such a lane; -inf in the others, which read nothing.
template <typename Element>
__device__ __forceinline__ void load_reaching(const Row<Element>& row, int segment, int v,
                                              bool reaches, float* logits) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) logits[i] = -kInfinity;
  if (reaches) row.load_vector(column_of(segment, v, 0), logits);
}

// Adds to the list what is at least `threshold` among the eight logits that each lane of a warp
// holds. True if the list is full: it is of no use any more, and the warp need not come again.
template <typename Element, bool kTeam>
__device__ __forceinline__ bool push_candidates(const Team<kTeam>& team, const Memory& memory,
                                                const float* logits, int segment, int v,
                                                float threshold) {
  unsigned wanted = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) wanted += logits[i] >= threshold && logits[i] > -kInfinity;
  if (gpu::ballot(wanted != 0) == 0) return false;
  const unsigned upto = warp_inclusive_sum(wanted);
  unsigned place = 0;
  if (gpu::lane_index() == 31) {
    place = gpu::atomic_add(team.in_leader(&memory.state()->num_candidates), upto);
  }
  place = gpu::shuffle(place, 31);
  if (place >= kListCapacity) return true;
  place += upto - wanted;
  uint64_t* list = team.in_leader(memory.list());
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (logits[i] >= threshold && logits[i] > -kInfinity) {
      if (place < kListCapacity) {
        list[place] = static_cast<uint64_t>(Keys<Element>::of(logits[i])) << 32 |
                      static_cast<uint32_t>(column_of(segment, v, i));
      }
      ++place;
    }
  }
  return false;
}

// By every block on its segments, of which it reads the pieces that reach the threshold; the list
// is in the leader after the barrier this ends with.
template <typename Element, bool kTeam>
__device__ __forceinline__ void gather_candidates(const Row<Element>& row, const Team<kTeam>& team,
                                                  const Command& command, const Memory& memory) {
  bool list_is_full = false;
  for (int segment = team.first_segment + static_cast<int>(gpu::warp_index());
       segment < team.last_segment && !list_is_full; segment += num_warps()) {
    if (memory.segment_max(segment) < command.threshold) continue;
    const bool reaches = lane_reaches(memory, segment, command.threshold);
    // In halves: the whole segment would not fit the registers beside what the leader knows.
#pragma unroll 1
    for (int half = 0; half < kVectors; half += 2) {
      float logits[2 * kVector];
      load_reaching(row, segment, half, reaches, logits);
      load_reaching(row, segment, half + 1, reaches, logits + kVector);
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        list_is_full |= push_candidates<Element>(team, memory, logits + v * kVector, segment,
                                                 half + v, command.threshold);
      }
    }
  }
  team.barrier();
}

}  // namespace autodeco::cuda
