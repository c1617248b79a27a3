// Features of q = softmax(l / (T + 1e-8)): largest q, entropy, variance, sum of the five largest.
// Grid, leader and shared memory as in sample.cuh. Any row is read twice, as ln(q + 1e-8) needs the
// sum of all weights first, and up to four of its pieces once more, for the five largest.
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
  for (int segment = team.first_segment + static_cast<int>(gpu::warp_index());
       segment < team.last_segment; segment += num_warps()) {
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
    entropy = warp_sum(entropy);
    squares = warp_sum(squares);
    if (gpu::lane_index() == 0) {
      team.in_leader(memory.segment_sum())[segment] = entropy;
      team.in_leader(memory.segment_raw_sum())[segment] = squares;
    }
  }
}

// The pieces of the row with the largest maxima, in descending order: the order key of the maximum
// << 32 | piece. Where there are fewer, the key is that of -inf. By the leader.
__device__ __forceinline__ void find_largest_pieces(int num_pieces, const Memory& memory,
                                                    uint64_t (&largest)[kTopCount]) {
  constexpr uint64_t kNone = static_cast<uint64_t>(order_key(-kInfinity)) << 32;
  uint64_t below = ~uint64_t{0};
#pragma unroll
  for (uint64_t& next : largest) {
    next = kNone;
#pragma unroll 1
    for (int piece = static_cast<int>(gpu::thread_index()); piece < num_pieces;
         piece += static_cast<int>(gpu::num_threads())) {
      const uint64_t key = order_key(memory.piece_max()[piece]);
      const uint64_t candidate = key << 32 | static_cast<uint32_t>(piece);
      if (candidate < below && candidate > next) next = candidate;
    }
    next = block_reduce(next, memory.head()->scratch64, kNone,
                        [](uint64_t a, uint64_t b) { return a > b ? a : b; });
    below = next;
  }
}

// The mass of the five largest tokens; the same in every thread of the leader. Four pieces at most
// have a maximum above the fifth largest one: the tokens above it are in those, and what is left of
// the five equals it.
template <typename Element>
__device__ __forceinline__ uint64_t mass_of_largest(const Row<Element>& row, const Scaling& scaling,
                                                    const Memory& memory) {
  static_assert(kVectors * kPieceLanes == 32);  // a warp holds a piece in one vector a lane
  constexpr int kMostPieces = kTopCount - 1;
  uint64_t pieces[kTopCount];
  find_largest_pieces(row.num_segments * kPieces, memory, pieces);
  const float fifth = logit_of_key(static_cast<uint32_t>(pieces[kMostPieces] >> 32));
  Head* head = memory.head();
  if (gpu::warp_index() == 0) {
    const int lane = static_cast<int>(gpu::lane_index());
    float logits[kMostPieces * kVector];
#pragma unroll
    for (int i = 0; i < kMostPieces; ++i) {
      const int first_lane = static_cast<int>(static_cast<uint32_t>(pieces[i])) * kPieceLanes;
      const int vector = first_lane / 32 * kVectors + lane / kPieceLanes;
      const int begin = (vector * 32 + first_lane % 32 + lane % kPieceLanes) * kVector;
      const bool reaches = logit_of_key(static_cast<uint32_t>(pieces[i] >> 32)) > fifth;
      row.load_vector(reaches ? begin : row.columns, logits + i * kVector);
    }
    uint64_t mass = 0;
    float below = kInfinity;
#pragma unroll 1
    for (unsigned left = kTopCount; left > 0;) {
      float next = fifth;
#pragma unroll
      for (const float logit : logits) next = logit < below && logit > next ? logit : next;
      next = warp_reduce(next, [](float a, float b) { return a > b ? a : b; });
      unsigned count = 0;
#pragma unroll
      for (const float logit : logits) count += logit == next;
      count = warp_sum(count);
      if (next == fifth || count > left) count = left;
      mass += count * scaling.mass(next, head->summary.max);
      left -= count;
      below = next;
    }
    if (lane == 0) head->scratch64[0] = mass;
  }
  gpu::block_barrier();
  return head->scratch64[0];
}

// By the leader: the two statistics that need no second read, and the command to make it. As on the
// CPU the logits decide first what is wrong: where they are NaN, the temperature that a head made
// of them is too.
template <typename Element, bool kTeam>
__device__ __forceinline__ Command start_moments(const RowTask<Element, kTeam>& task,
                                                 const Scaling& scaling, Statistics& statistics) {
  const Plan& plan = task.memory.head()->plan;
  add_up_segments();
  const Summary& summary = task.memory.head()->summary;
  Command command;
  const RowStatus status = summary.status == RowStatus::kValid ? plan.status : summary.status;
  if (status != RowStatus::kValid) {
    statistics.status = status;
    for (float& value : statistics.value) value = kNaN;
    return command;
  }
  const uint64_t largest = mass_of_largest(task.row, scaling, task.memory);
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
#pragma unroll 1
  for (int segment = static_cast<int>(gpu::thread_index()); segment < row.num_segments;
       segment += static_cast<int>(gpu::num_threads())) {
    entropy += static_cast<double>(memory.segment_sum()[segment]);
    squares += static_cast<double>(memory.segment_raw_sum()[segment]);
  }
  double* scratch = reinterpret_cast<double*>(memory.head()->scratch64);
  entropy = block_sum(entropy, scratch);
  squares = block_sum(squares, scratch);
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
  const Scaling scaling = read_row(task, filters, Details::kNone);
  Statistics statistics = {};
  // There is one command. By lead_or_follow() the kernel would hold every other one too.
  Command command;
  if (task.team.leads()) {
    command = start_moments(task, scaling, statistics);
    task.team.announce(command);
  }
  task.team.barrier();
  if (!task.team.leads()) command = task.memory.state()->command;
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
