// Features of q = softmax(l / (T + 1e-8)): largest q, entropy, variance, sum of the five largest.
// Grid, leader and shared memory as in sample.cuh. The row is read at least twice: ln(q + 1e-8)
// needs the sum of all weights first. The five largest are a kept set with top_k = 5, which costs a
// peaked row a few pieces and a flat one further reads.
#pragma once

#include "autodeco/distribution_stats.h"
#include "row_task.cuh"

namespace autodeco::cuda {

// The value of valid_vocab that leaves every column.
__device__ __forceinline__ RowParameter<int64_t> all_columns() {
  return {nullptr, std::numeric_limits<int64_t>::max()};
}

// In every thread of the leader alone.
struct Statistics {
  RowStatus status;
  float value[kNumStats];  // NaN if the status is not kValid
};

// Sums over every segment, in an order that depends on nothing but the segment: q ln(q + 1e-8) in
// memory.segment_sum, (q - mean)^2 in memory.segment_raw_sum of the leader.
template <typename Element, bool kTeam>
__device__ __forceinline__ void sum_moments(const Row<Element>& row, const Team<kTeam>& team,
                                            const Scaling& scaling, const Command& command,
                                            const Memory& memory) {
  const float max = command.row_max;
  const float inverse = command.inverse_mass;
  const float mean = 1.0f / static_cast<float>(row.columns);
  const int num_warps = static_cast<int>(gpu::num_threads() / 32);
  const auto add = [](float a, float b) { return a + b; };
  for (int segment = team.first_segment + static_cast<int>(gpu::warp_index());
       segment < team.last_segment; segment += num_warps) {
    float logits[kLaneLogits];
    row.load_segment(segment, logits);
    float entropy = 0.0f;
    float squares = 0.0f;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float vector_entropy = 0.0f;
      float vector_squares = 0.0f;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const float q = scaling.weight(logits[v * kVector + i], max) * inverse;
        const float deviation = column_of(segment, v, i) < row.columns ? q - mean : 0.0f;
        vector_entropy += q * logf(q + kStatsEpsilon);
        vector_squares += deviation * deviation;
      }
      entropy += vector_entropy;
      squares += vector_squares;
    }
    entropy = warp_reduce(entropy, add);
    squares = warp_reduce(squares, add);
    if (gpu::lane_index() == 0) {
      team.in_leader(memory.segment_sum())[segment] = entropy;
      team.in_leader(memory.segment_raw_sum())[segment] = squares;
    }
  }
}

// By the leader: the two statistics that need no second read, and the command to make it. As on the
// CPU the logits decide first what is wrong: where they are NaN, the temperature that a head made
// of them is too.
template <typename Element, bool kTeam>
__device__ __forceinline__ Command start_moments(const RowTask<Element, kTeam>& task,
                                                 const Scaling& scaling, Statistics& statistics) {
  const Plan& plan = task.memory.head()->plan;
  collect(task.row, plan, scaling, task.memory);
  const Summary& summary = task.memory.head()->summary;
  Command command;
  const RowStatus status = summary.status == RowStatus::kValid ? plan.status : summary.status;
  if (status != RowStatus::kValid) {
    statistics.status = status;
    for (float& value : statistics.value) value = std::bit_cast<float>(0x7fc00000u);
    return command;
  }
  uint64_t largest = summary.mass;
  if (plan.filtered) {
    const Leader<Element, kTeam> leader = {task.row, task.team, scaling, task.memory};
    largest = find_kept_set(leader, plan, summary).mass;
  }
  const double total = static_cast<double>(summary.mass) / kMassScale;
  const double share = static_cast<double>(largest) / static_cast<double>(summary.mass);
  statistics.value[0] = static_cast<float>(1.0 / total);
  statistics.value[3] = static_cast<float>(share < 1.0 ? share : 1.0);
  command.action = Action::kWrite;
  command.row_max = summary.max;
  command.inverse_mass = statistics.value[0];
  return command;
}

// By the leader, after the second read.
template <typename Element>
__device__ __forceinline__ void finish_moments(const Row<Element>& row, const Memory& memory,
                                               Statistics& statistics) {
  double entropy = 0.0;
  double squares = 0.0;
  for (int segment = static_cast<int>(gpu::thread_index()); segment < row.num_segments;
       segment += static_cast<int>(gpu::num_threads())) {
    entropy += static_cast<double>(memory.segment_sum()[segment]);
    squares += static_cast<double>(memory.segment_raw_sum()[segment]);
  }
  const auto add = [](double a, double b) { return a + b; };
  double* scratch = reinterpret_cast<double*>(memory.head()->scratch64);
  entropy = block_reduce(entropy, scratch, 0.0, add);
  squares = block_reduce(squares, scratch, 0.0, add);
  statistics.status = RowStatus::kValid;
  statistics.value[1] = static_cast<float>(-entropy);
  // The variance of a single number is not defined; we call it 0.
  statistics.value[2] =
      row.columns > 1 ? static_cast<float>(squares / static_cast<double>(row.columns - 1)) : 0.0f;
}

// By every block of the team; the temperature is the same in all of them.
template <typename Element, bool kTeam>
__device__ __forceinline__ Statistics row_statistics(const RowTask<Element, kTeam>& task,
                                                     float temperature) {
  FilterParameters filters;
  // What is invalid stays so.
  const bool valid = temperature_status(temperature) == RowStatus::kValid;
  filters.temperature.value = valid ? temperature + kStatsEpsilon : -1.0f;
  filters.top_p.value = 1.0f;
  filters.top_k.value = kTopCount;
  const Scaling scaling = read_row(task, filters, Details::kNone);
  Statistics statistics = {};
  const Command command =
      lead_or_follow(task, scaling, [&]() { return start_moments(task, scaling, statistics); });
  if (command.action == Action::kFinish) return statistics;
  sum_moments(task.row, task.team, scaling, command, task.memory);
  task.team.barrier();
  if (task.team.leads()) finish_moments(task.row, task.memory, statistics);
  return statistics;
}

template <typename Element, bool kTeam>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<kTeam>)
    distribution_stats_kernel(DistributionStatsArguments arguments) {
  const RowTask<Element, kTeam> task(arguments.logits, arguments.layout, all_columns(),
                                     arguments.team);
  const Statistics statistics =
      row_statistics(task, value_at(arguments.temperature, task.row_index));
  if (!task.team.leads() || gpu::thread_index() != 0) return;
  arguments.status[task.row_index] = statistics.status;
#pragma unroll
  for (int i = 0; i < kNumStats; ++i) {
    arguments.output[task.row_index * kNumStats + i] = statistics.value[i];
  }
}

}  // namespace autodeco::cuda
