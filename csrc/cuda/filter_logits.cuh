// logits / T inside the kept set, filter_value outside. Grid, leader and shared memory as in
// sample.cuh; the blocks of a team write the segments they own.
#pragma once

#include "autodeco/filter_logits.h"
#include "row_task.cuh"

namespace autodeco::cuda {

template <bool kTeam>
__device__ __forceinline__ void fill_columns(const Team<kTeam>& team, float* output, int begin,
                                             int64_t end, float value) {
  const int64_t step = static_cast<int64_t>(gpu::num_threads()) * team.size;
  for (int64_t i =
           begin + team.rank * static_cast<int64_t>(gpu::num_threads()) + gpu::thread_index();
       i < end; i += step) {
    output[i] = value;
  }
}

// By every block. Reads every logit before it writes the output of the same column, so that the
// output may be the logits themselves.
template <typename Element, bool kTeam>
__device__ __forceinline__ void write_segments(const FilterLogitsArguments& arguments,
                                               const Row<Element>& row, const Team<kTeam>& team,
                                               float* output, float temperature,
                                               const Command& command) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  const float divisor = temperature == 0.0f ? 1.0f : temperature;
  const int num_warps = static_cast<int>(gpu::num_threads() / 32);
  for (int segment = team.first_segment + static_cast<int>(gpu::warp_index());
       segment < team.last_segment; segment += num_warps) {
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
      float logits[kVector];
      row.load_vector(column_of(segment, v, 0), logits);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const int column = column_of(segment, v, i);
        if (column >= row.columns) continue;
        const uint32_t key = Keys<Element>::of(logits[i]);
        const bool keep =
            key > command.cut_key || (key == command.cut_key && column <= command.last_tie);
        const float scaled = logits[i] / divisor;
        const float low = scaled < -kLargest ? -kLargest : scaled;
        const float saturated = low > kLargest ? kLargest : low;
        output[column] = keep ? saturated : arguments.filter_value;
      }
    }
  }
}

// Decides what is kept: the last kept key and the last index among its ties.
template <typename Element, bool kTeam>
__device__ __forceinline__ Command decide(const Row<Element>& row, const Team<kTeam>& team,
                                          const Scaling& scaling, const Memory& memory) {
  const Plan& plan = memory.head()->plan;
  collect(row, plan, scaling, memory);
  const Summary& summary = memory.head()->summary;
  Command command;
  if (summary.status != RowStatus::kValid) return command;
  command.action = Action::kWrite;
  // Without a filter everything above -inf is kept.
  command.cut_key = Keys<Element>::of(-kInfinity);
  command.last_tie = -1;
  if (plan.one_token) {
    command.cut_key = Keys<Element>::of(summary.max);
    if (gpu::warp_index() == 0) {
      const int argmax = find_argmax(row, summary.max_segment, summary.max);
      if (gpu::lane_index() == 0) memory.head()->found = argmax;
    }
    gpu::block_barrier();
    command.last_tie = memory.head()->found;
  } else if (plan.filtered) {
    Leader<Element, kTeam> leader = {row, team, scaling, memory, summary.max, {}};
    const KeptSet kept = find_kept_set(leader, plan, summary);
    command.cut_key = kept.key;
    command.last_tie = kept.last_tie;
  }
  return command;
}

template <typename Element, bool kTeam>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    filter_logits_kernel(FilterLogitsArguments arguments) {
  const RowTask<Element, kTeam> task(arguments.logits, arguments.layout,
                                     arguments.filters.valid_vocab);
  float* output = arguments.output + row_offset(arguments.output_layout, task.row_index);
  RowStatus status = filter_status(arguments.filters, task.row_index);
  Command command;
  if (status == RowStatus::kValid) {  // the same in the whole team
    const Scaling scaling = read_row(task, arguments.filters, false);
    command = lead_or_follow(task, scaling,
                             [&]() { return decide(task.row, task.team, scaling, task.memory); });
    if (task.team.leads()) status = task.memory.head()->summary.status;
  }
  if (task.team.leads() && gpu::thread_index() == 0) arguments.status[task.row_index] = status;
  int written = 0;
  if (command.action == Action::kWrite) {
    const float temperature = value_at(arguments.filters.temperature, task.row_index);
    write_segments(arguments, task.row, task.team, output, temperature, command);
    written = task.row.columns;
  }
  fill_columns(task.team, output, written, arguments.layout.vocab, arguments.filter_value);
}

}  // namespace autodeco::cuda
