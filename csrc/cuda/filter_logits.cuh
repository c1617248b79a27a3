// logits / T inside the kept set, filter_value outside. Grid, leader and shared memory as in
// sample.cuh; the blocks of a team write the segments they own.
#pragma once

#include "autodeco/filter_logits.h"
#include "decide.cuh"

namespace autodeco::cuda {

template <bool kTeam>
__device__ __forceinline__ void fill_columns(const Team<kTeam>& team, float* output, int begin,
                                             int64_t end, float value) {
  const int64_t step = static_cast<int64_t>(gpu::num_threads()) * team.size();
  for (int64_t i =
           begin + team.rank() * static_cast<int64_t>(gpu::num_threads()) + gpu::thread_index();
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
        const bool keep = is_kept(command.last_kept, Keys<Element>::of(logits[i]), column);
        const float scaled = logits[i] / divisor;
        const float low = scaled < -kLargest ? -kLargest : scaled;
        const float saturated = low > kLargest ? kLargest : low;
        output[column] = keep ? saturated : arguments.filter_value;
      }
    }
  }
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
    const Scaling scaling = read_row(task, arguments.filters, Details::kNone);
    command = lead_or_follow(task, scaling, [&]() {
      const Decision decision = decide(task, scaling);
      status = decision.status;
      Command write;
      if (status == RowStatus::kValid) write.action = Action::kWrite;
      write.last_kept = decision.last;
      return write;
    });
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
