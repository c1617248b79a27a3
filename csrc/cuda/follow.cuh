// The part of the blocks that do not lead.
#pragma once

#include "draw.cuh"

namespace autodeco::cuda {

// What a block that does not lead does after the streaming read, until the leader has decided.
template <typename Element, int kCluster>
__device__ __forceinline__ void follow(const Row<Element>& row, const Team<kCluster>& team,
                                       const Scaling& scaling, const Memory& memory) {
  for (;;) {
    team.barrier();
    const Command command = memory.head()->command;
    if (command.action == Action::kFinish || command.action == Action::kWrite) return;
    execute(row, team, command, scaling, memory);
  }
}

}  // namespace autodeco::cuda
