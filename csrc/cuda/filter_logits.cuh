// logits / T inside the kept set, filter_value outside. Grid, leader and shared memory as in
// sample.cuh; the blocks of a cluster write the segments they own.
#pragma once

#include "autodeco/filter_logits.h"
#include "follow.cuh"

namespace autodeco::cuda {

template <int kCluster>
__device__ __forceinline__ void fill_columns(const Team<kCluster>& team, float* output, int begin,
                                             int64_t end, float value) {
  const int64_t step = static_cast<int64_t>(gpu::num_threads()) * kCluster;
  for (int64_t i =
           begin + team.rank * static_cast<int64_t>(gpu::num_threads()) + gpu::thread_index();
       i < end; i += step) {
    output[i] = value;
  }
}

// By every block. Reads every logit before it writes the output of the same column, so that the
// output may be the logits themselves.
template <typename Element, int kCluster>
__device__ __forceinline__ void write_segments(const FilterLogitsArguments& arguments,
                                               const Row<Element>& row, const Team<kCluster>& team,
                                               float* output, float temperature,
                                               const Memory& memory) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  const uint32_t cut_key = memory.head()->command.cut_key;
  const int last_tie = memory.head()->command.last_tie;
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
        const bool keep = key > cut_key || (key == cut_key && column <= last_tie);
        const float scaled = logits[i] / divisor;
        const float low = scaled < -kLargest ? -kLargest : scaled;
        const float saturated = low > kLargest ? kLargest : low;
        output[column] = keep ? saturated : arguments.filter_value;
      }
    }
  }
}

// Decides what is kept: the last kept key and the last index among its ties.
template <typename Element, int kCluster>
__device__ __forceinline__ Command decide(const Row<Element>& row, const Team<kCluster>& team,
                                          const Scaling& scaling, const Memory& memory) {
  const Plan& plan = memory.head()->plan;
  collect(row, plan, scaling, memory);
  const Summary& summary = memory.head()->summary;
  Command command = {};
  if (summary.status != RowStatus::kValid) {
    command.action = Action::kFinish;
    return command;
  }
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
    Leader<Element, kCluster> leader = {row, team, scaling, memory, summary.max, {}};
    const KeptSet kept = find_kept_set(leader, plan, summary);
    command.cut_key = kept.key;
    command.last_tie = kept.last_tie;
  }
  return command;
}

template <typename Element, int kCluster>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    filter_logits_kernel(FilterLogitsArguments arguments) {
  const int64_t row_index = gpu::block_index() / kCluster;
  const int64_t columns =
      existing_columns(arguments.layout.vocab, value_at(arguments.filters.valid_vocab, row_index));
  const Row<Element> row(arguments.logits, row_offset(arguments.layout, row_index), columns);
  const Team<kCluster> team(row.num_segments);
  float* output = arguments.output + row_offset(arguments.output_layout, row_index);
  RowStatus status = filter_status(arguments.filters, row_index);
  if (status != RowStatus::kValid) {  // the same in the whole cluster
    if (team.leads() && gpu::thread_index() == 0) arguments.status[row_index] = status;
    fill_columns(team, output, 0, arguments.layout.vocab, arguments.filter_value);
    return;
  }
  const Memory memory(static_cast<int>(arguments.layout.vocab));
  const float temperature = value_at(arguments.filters.temperature, row_index);
  const Scaling scaling(temperature > 0.0f ? temperature : 1.0f);
  {
    const Plan plan = make_plan(arguments.filters, row_index, columns, false);
    reset(team, plan, memory);
    summarize(row, team, plan, scaling, memory);
  }
  team.barrier();
  if (team.leads()) {
    const Command command = decide(row, team, scaling, memory);
    team.announce(memory.head(), command);
    if (gpu::thread_index() == 0) arguments.status[row_index] = memory.head()->summary.status;
    team.barrier();
  } else {
    follow(row, team, scaling, memory);
  }
  if (memory.head()->command.action == Action::kWrite) {
    write_segments(arguments, row, team, output, temperature, memory);
    fill_columns(team, output, row.columns, arguments.layout.vocab, arguments.filter_value);
  } else {
    fill_columns(team, output, 0, arguments.layout.vocab, arguments.filter_value);
  }
}

}  // namespace autodeco::cuda
