// logits / T inside the kept set, filter_value outside; or only where the kept set ends and how
// many it is. Grid, leader and shared memory as in sample.cuh; the blocks of a team write the
// segments they own.
#pragma once

#include "decide.cuh"
#include "filter_logits.h"
#include "store.cuh"

namespace autodeco::cuda {

template <bool kTeam>
__device__ __forceinline__ void fill_columns(const Team<kTeam>& team, float* output, int begin,
                                             int64_t end, float value) {
  const int64_t step = static_cast<int64_t>(gpu::num_threads()) * team.size();
#pragma unroll 1
  for (int64_t i =
           begin + team.rank() * static_cast<int64_t>(gpu::num_threads()) + gpu::thread_index();
       i < end; i += step) {
    output[i] = value;
  }
}

// l / T, saturated, to the last bit. Where nothing in between can overflow or become denormal, a
// product with 1 / T and two corrections are exactly the quotient; T is the same for the whole row,
// and a division for each logit costs a reciprocal each.
struct Quotient {
  float divisor;
  float reciprocal;
  bool is_plain;

  __device__ __forceinline__ explicit Quotient(float temperature)
      : divisor(temperature == 0.0f ? 1.0f : temperature),
        reciprocal(1.0f / divisor),
        is_plain(in_range(divisor)) {}

  __device__ __forceinline__ static bool in_range(float magnitude) {
    return magnitude >= 0x1p-60f && magnitude <= 0x1p60f;
  }
  __device__ __forceinline__ bool takes(float logit) const {
    return logit == 0.0f || in_range(fabsf(logit));
  }

  // Of a logit that it takes, where is_plain.
  __device__ __forceinline__ float by_product(float logit) const {
    float result = logit * reciprocal;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      result = fmaf(fmaf(-result, divisor, logit), reciprocal, result);
    }
    return copysignf(result, logit);  // -0.0
  }

  __device__ __forceinline__ float by_division(float logit) const {
    constexpr float kLargest = std::numeric_limits<float>::max();
    const float scaled = logit / divisor;
    const float low = scaled < -kLargest ? -kLargest : scaled;
    return low > kLargest ? kLargest : low;
  }
};

// What a vector of logits becomes; the first of its columns is `begin`.
template <typename Element>
__device__ __forceinline__ void filter_vector(const Quotient& quotient, const LastKept& last,
                                              float filter_value, int begin, float* logits) {
  unsigned kept = 0;
  bool is_plain = quotient.is_plain;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const bool keep = is_kept(last, Keys<Element>::of(logits[i]), begin + i);
    if (keep) kept |= 1u << i;
    is_plain &= !keep || quotient.takes(logits[i]);
  }
  if (is_plain) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      logits[i] = (kept >> i & 1u) != 0 ? quotient.by_product(logits[i]) : filter_value;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      logits[i] = (kept >> i & 1u) != 0 ? quotient.by_division(logits[i]) : filter_value;
    }
  }
}

// By every block. Reads every logit before it writes the output of the same column, so that the
// output may be the logits themselves.
template <typename Element, bool kTeam>
__device__ __forceinline__ void write_segments(const FilterLogitsArguments& arguments,
                                               const Row<Element>& row, const Team<kTeam>& team,
                                               float* output, float temperature,
                                               const Command& command) {
  const Quotient quotient(temperature);
  const bool aligned = takes_vectors(output);
  for (int segment = team.first_segment + static_cast<int>(gpu::warp_index());
       segment < team.last_segment; segment += num_warps()) {
    float logits[kLaneLogits];
    row.load_segment(segment, logits);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int begin = column_of(segment, v, 0);
      float* vector = logits + v * kVector;
      filter_vector<Element>(quotient, command.last_kept, arguments.filter_value, begin, vector);
      store_vector(output + begin, row.columns - begin, aligned, vector);
    }
  }
}

template <typename Element, bool kTeam>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<kTeam>)
    filter_logits_kernel(FilterKernelArguments arguments) {
  const RowTask<Element, kTeam> task(arguments.logits, arguments.layout,
                                     arguments.filters.valid_vocab, arguments.team);
  RowStatus status = filter_status(arguments.filters, task.row_index);
  uint64_t count = 0;
  Command command;
  if (status == RowStatus::kValid) {  // the same in the whole team
    read_row(task, arguments.filters,
             arguments.counts != nullptr ? Details::kCount : Details::kNone);
    command = lead_or_follow(task, [&](const auto& leader) {
      const Decision decision = decide(leader);
      status = decision.status;
      count = decision.count;
      Command write;
      if (status == RowStatus::kValid) write.action = Action::kWrite;
      write.last_kept = decision.last;
      return write;
    });
  }
  // Asked and read again: kept so long, they would not fit the registers.
  const int64_t row_index = gpu::block_index() / Team<kTeam>::size_of(arguments.team);
  const Memory memory(static_cast<int>(arguments.layout.vocab), task.memory.team_memory);
  const Team<kTeam> team(arguments.team, memory, 0);
  const bool reports = team.leads() && gpu::thread_index() == 0;
  if (reports) arguments.status[row_index] = status;
  if (arguments.counts != nullptr) {
    if (reports) {
      arguments.last[row_index] = command.last_kept;
      arguments.counts[row_index] = static_cast<int64_t>(count);
    }
    return;
  }
  float* output = arguments.output + row_offset(arguments.output_layout, row_index);
  int written = 0;
  if (command.action == Action::kWrite) {
    const Leader<Element, kTeam>& block = leader_of_block<Element, kTeam>();
    const float temperature = value_at(arguments.filters.temperature, row_index);
    const Row<Element> row = block.row;
    const Team<kTeam> owner = block.team;
    write_segments(arguments, row, owner, output, temperature, command);
    written = row.columns;
  }
  fill_columns(team, output, written, arguments.layout.vocab, arguments.filter_value);
}

}  // namespace autodeco::cuda
