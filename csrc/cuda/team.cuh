// How the blocks that share a row work together.
//
// Block 0 of a team leads: it decides, and its peers carry out commands on their part of the
// row. With one block a row the same code runs without peers.
//
// With clusters the blocks reach the leader's shared memory. Code for devices without them (before
// sm_90) has a team meet in global memory instead: launched together, so that a block may wait for
// another.
#pragma once

#include "autodeco/team_scratch.h"
#include "row_memory.cuh"

namespace autodeco::cuda {

// Where the blocks of a team wait for each other in global memory.
struct Rendezvous {
  uint32_t arrived;  // blocks at barriers since the launch
  uint32_t to_leader[kMostBlocks];
  uint32_t from_leader[kMostBlocks];
};

// In front of what they share: a cache line of its own.
constexpr size_t kRendezvousBytes = 128;
static_assert(sizeof(Rendezvous) <= kRendezvousBytes);

// One row's share of the scratch of a launch, in whole lines.
constexpr size_t team_scratch_bytes(int64_t vocab) {
  constexpr size_t kLine = kRendezvousBytes;
  return kRendezvousBytes + (shared_memory_bytes(vocab) + kLine - 1) / kLine * kLine;
}
// What a launch may allocate is 1 % of the logits or 1 MiB, whichever is larger. A row's scratch is
// more than 1 % of any row, so portable_team_size asks for 1 MiB alone.
static_assert(team_scratch_bytes(1) > int64_t{kMaxSegments} * kSegment * sizeof(float) / 100);

// Two threads of different blocks meet in memory that holds anything, perhaps what an earlier run
// of the same launch left there. Each picks a number that neither word speaks of, and goes on when
// it gets that number back: only a thread that runs now can have seen it. What each did before is
// then known to the other.
//
// A word is what its writer picked << 16 | what it saw the other pick.
__device__ __forceinline__ void meet(uint32_t* mine, const uint32_t* theirs) {
  const uint32_t old_pick = gpu::read_published(mine) >> 16;
  const uint32_t old_echo = gpu::read_published(theirs) & 0xffffu;
  uint32_t pick = 0;  // one of three is neither
  while (pick == old_pick || pick == old_echo) ++pick;
  for (;;) {
    const uint32_t heard = gpu::read_published(theirs);
    gpu::publish(mine, pick << 16 | heard >> 16);
    if ((heard & 0xffffu) == pick) return;
    gpu::pause();
  }
}

// The blocks that share a row: one (kTeam is false), or 2, 4 or 8.
template <bool kTeam>
struct Team {
  TeamScratch scratch;
  TeamState* state;
  int first_segment;  // of those that this block owns
  int last_segment;

  __device__ __forceinline__ Team(const TeamScratch& team_scratch, const Memory& memory,
                                  int num_segments)
      : scratch(team_scratch), state(memory.state()) {
    const int team_size = static_cast<int>(size());
    const int share = (num_segments + team_size - 1) / team_size;
    const int begin = static_cast<int>(rank()) * share;
    first_segment = begin < num_segments ? begin : num_segments;
    last_segment = begin + share < num_segments ? begin + share : num_segments;
  }

  __device__ __forceinline__ static unsigned size_of(const TeamScratch& scratch) {
    if constexpr (kTeam) {
      return gpu::has_clusters() ? gpu::cluster_size()
                                 : static_cast<unsigned>(scratch.blocks_per_row);
    }
    return 1;
  }
  // What Memory::team_memory is.
  __device__ __forceinline__ static char* memory_of(const TeamScratch& scratch, int64_t row_index,
                                                    int64_t vocab) {
    if constexpr (kTeam) {
      if (!gpu::has_clusters()) {
        return scratch.memory + row_index * static_cast<int64_t>(team_scratch_bytes(vocab)) +
               kRendezvousBytes;
      }
    }
    return gpu::shared_memory();
  }

  // Before anything else. A thread that has met nobody waits at the next barrier for those that do.
  __device__ __forceinline__ void start() const {
    if constexpr (kTeam) {
      if (gpu::has_clusters()) return;
      const unsigned thread = gpu::thread_index();
      if (!leads()) {
        if (thread == 0) meet(&rendezvous()->to_leader[rank()], &rendezvous()->from_leader[rank()]);
        return;
      }
      if (thread == 0) rendezvous()->arrived = 0;
      gpu::block_barrier();
      if (thread > 0 && thread < size()) {
        meet(&rendezvous()->from_leader[thread], &rendezvous()->to_leader[thread]);
      }
    }
  }

  __device__ __forceinline__ Rendezvous* rendezvous() const {
    return reinterpret_cast<Rendezvous*>(reinterpret_cast<char*>(state) - kRendezvousBytes);
  }

  // Asked again where they are needed: kept, they would fill the registers.
  __device__ __forceinline__ unsigned size() const { return size_of(scratch); }
  __device__ __forceinline__ unsigned rank() const {
    if constexpr (kTeam) {
      return gpu::has_clusters() ? gpu::cluster_rank() : gpu::block_index() & (size() - 1);
    }
    return 0;
  }
  // What it shares lies in global memory.
  __device__ __forceinline__ bool is_portable() const { return kTeam && !gpu::has_clusters(); }
  __device__ __forceinline__ bool leads() const { return !kTeam || rank() == 0; }

  __device__ __forceinline__ void barrier(gpu::Location location = gpu::Location::current()) const {
    if constexpr (!kTeam) {
      gpu::block_barrier(location);
    } else if (gpu::has_clusters()) {
      gpu::cluster_barrier(location);
    } else {
      gpu::block_barrier();
      if (gpu::thread_index() == 0) {
        // The count only grows, so that nobody has to wait before it is used again.
        const uint32_t before = gpu::arrive(&rendezvous()->arrived, location);
        gpu::wait_for(&rendezvous()->arrived, (before & ~(size() - 1)) + size(), location);
      }
      gpu::block_barrier();
    }
  }

  // An address in Memory's part that is shared, as the block of that rank has it.
  template <typename T>
  __device__ __forceinline__ T* in_block(T* mine, unsigned block) const {
    if constexpr (kTeam) {
      if (gpu::has_clusters()) return gpu::cluster_peer(mine, block);
    }
    return mine;
  }
  template <typename T>
  __device__ __forceinline__ T* in_leader(T* mine) const {
    return in_block(mine, 0);
  }

  // By the leader: after the barrier that follows, every block sees the command.
  __device__ __forceinline__ void announce(const Command& command) const {
    const unsigned copies = gpu::has_clusters() ? size() : 1;
    if (gpu::thread_index() >= copies) return;
    *in_block(&state->command, gpu::thread_index()) = command;
  }
};

}  // namespace autodeco::cuda
