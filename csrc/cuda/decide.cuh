// What a row keeps, for the kernels that ask for nothing else.
#pragma once

#include "row_task.cuh"

namespace autodeco::cuda {

struct Decision {
  RowStatus status;
  LastKept last;   // of a valid row
  uint64_t count;  // of kept tokens; where no filter is on, only if the plan needs it
};

// By the leader after the streaming read.
template <typename Element, bool kTeam>
__device__ __forceinline__ Decision decide(const Leader<Element, kTeam>& leader) {
  const Memory& memory = leader.memory;
  const Plan& plan = memory.head()->plan;
  collect();
  const Summary& summary = memory.head()->summary;
  // Without a filter everything above -inf is kept.
  Decision decision = {summary.status, {Keys<Element>::of(-kInfinity), -1}, 0};
  if (summary.status != RowStatus::kValid) return decision;
  if (plan.one_token) {
    if (gpu::warp_index() == 0) {
      const int argmax = find_argmax(leader.row, summary.max_segment, summary.max);
      if (gpu::lane_index() == 0) memory.head()->found = argmax;
    }
    gpu::block_barrier();
    decision.last = {Keys<Element>::of(summary.max), memory.head()->found};
    decision.count = 1;
  } else if (plan.filtered) {
    const KeptSet kept = find_kept_set(leader, plan, summary);
    decision.last = {kept.key, kept.last_tie};
    decision.count = kept.count;
  } else {
    decision.count = memory.state()->num_finite;
  }
  return decision;
}

}  // namespace autodeco::cuda
