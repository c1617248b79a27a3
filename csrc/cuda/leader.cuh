// What a block knows of its row. It lies in shared memory, where the functions that are called
// (AUTODECO_CALLED) find it, so that their callers have nothing to hand over and nothing to keep.
#pragma once

#include "team.cuh"

namespace autodeco::cuda {

// What needs neither the row nor other blocks.
struct Digest {
  Memory memory;
  Scaling scaling;
  int num_segments;

  __device__ __forceinline__ float row_max() const { return head_of_block()->summary.max; }
  __device__ __forceinline__ uint64_t mass_of(float logit) const {
    return scaling.mass(logit, row_max());
  }
};

// What the leader of a team works with, and in part its peers.
template <typename Element, bool kTeam>
struct Leader : Digest {
  Row<Element> row;
  Team<kTeam> team;

  __device__ __forceinline__ uint64_t mass_of_key(uint32_t key) const {
    return mass_of(Keys<Element>::logit(key));
  }
};

// The block's own. Behind a barrier or a call its fields are read from shared memory again.
template <typename Element, bool kTeam>
__device__ __forceinline__ const Leader<Element, kTeam>& leader_of_block() {
  gpu::promise_num_threads<kThreads>();
  return *reinterpret_cast<const Leader<Element, kTeam>*>(head_of_block()->leader);
}
__device__ __forceinline__ const Digest& digest_of_block() {
  gpu::promise_num_threads<kThreads>();
  return *reinterpret_cast<const Digest*>(head_of_block()->leader);
}

// By one thread, before a barrier.
template <typename Element, bool kTeam>
__device__ __forceinline__ void keep(const Leader<Element, kTeam>& leader) {
  static_assert(sizeof(Leader<Element, kTeam>) <= sizeof(Head::leader));
  *reinterpret_cast<Leader<Element, kTeam>*>(head_of_block()->leader) = leader;
}

}  // namespace autodeco::cuda
