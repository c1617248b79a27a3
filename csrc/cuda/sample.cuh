// The fused sampler. Grid: 1 (kTeam is false) or 2 to 8 blocks of kThreads a row, row-major. A
// block owns a run of segments of its row; the first of a team leads (team.cuh). Shared
// memory: shared_memory_bytes(vocab).
#pragma once

#include "autodeco/sample.h"
#include "row_task.cuh"

namespace autodeco::cuda {

__device__ __forceinline__ float saturated(double logprob) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  return static_cast<float>(logprob < -kLargest ? -kLargest : logprob);
}

// ln of a fixed-point mass, in units of the largest weight.
__device__ AUTODECO_CALLED double log_of_mass(uint64_t mass) {
  return log(static_cast<double>(mass) / kMassScale);
}

__device__ __forceinline__ void write_status(const SampleArguments& arguments, int64_t row,
                                             RowStatus status) {
  arguments.status[row] = status;
  if (arguments.valid != nullptr) arguments.valid[row] = status == RowStatus::kValid;
}

// By one block.
__device__ __forceinline__ void write_invalid(const SampleArguments& arguments, int64_t row,
                                              RowStatus status) {
  if (gpu::thread_index() == 0) write_status(arguments, row, status);
  for (int64_t sample = gpu::thread_index(); sample < arguments.num_samples;
       sample += gpu::num_threads()) {
    const int64_t slot = row * arguments.num_samples + sample;
    arguments.tokens[slot] = -1;
    if (arguments.kept != nullptr) {
      arguments.logprobs[slot] = kNaN;
      arguments.raw_logprobs[slot] = kNaN;
    }
  }
  if (arguments.kept != nullptr && gpu::thread_index() == 0) {
    arguments.kept[row] = 0;
    arguments.log_kept_mass[row] = kNaN;
  }
}

struct Normalisers {
  float max;
  float temperature;  // 0: greedy
  double log_kept;    // ln of the kept mass, in units of the largest weight
  double log_raw;     // the same of the whole row at temperature 1
};

__device__ __forceinline__ void write_token(const SampleArguments& arguments, int64_t slot,
                                            const Token& token, const Normalisers& normalisers) {
  arguments.tokens[slot] = token.column;
  if (arguments.kept == nullptr) return;
  const double below_max = static_cast<double>(token.logit) - static_cast<double>(normalisers.max);
  arguments.logprobs[slot] =
      normalisers.temperature == 0.0f
          ? 0.0f
          : saturated(below_max / static_cast<double>(normalisers.temperature) -
                      normalisers.log_kept);
  arguments.raw_logprobs[slot] = saturated(below_max - normalisers.log_raw);
}

__device__ __forceinline__ uint64_t uniform53_of(const SampleArguments& arguments, int64_t row,
                                                 int64_t sample) {
  uint64_t offset = static_cast<uint64_t>(value_at(arguments.offset, row));
  if (arguments.add_row_to_offset) offset += static_cast<uint64_t>(row);
  return philox_uniform53(static_cast<uint64_t>(value_at(arguments.seed, row)), offset,
                          RandomStream::kSample, static_cast<uint32_t>(sample));
}

// One warp a sample. Where no filter is on, segments were summed in floats.
template <typename Element, bool kTeam>
__device__ __forceinline__ void draw_samples(const SampleArguments& arguments, int64_t row_index,
                                             const Leader<Element, kTeam>& leader, bool filtered,
                                             const KeptSet& kept, uint64_t mass,
                                             const Normalisers& normalisers) {
  const Memory& memory = leader.memory;
  // Where nothing was searched for, a unit is a segment.
  const int unit_shift = filtered ? unit_shift_of<Element>(memory) : 0;
  const int num_units = leader.row.num_units(unit_shift);
  for (int64_t sample = gpu::warp_index(); sample < arguments.num_samples; sample += num_warps()) {
    // floor(u * mass), exactly.
    const uint64_t threshold =
        gpu::multiply_high(uniform53_of(arguments, row_index, sample) << 11, mass);
    const int unit = unit_of(memory, num_units, threshold);
    const uint64_t before = unit > 0 ? memory.segment_mass()[unit - 1] : 0;
    const uint64_t unit_mass = memory.segment_mass()[unit] - before;
    const Token token =
        draw_in_unit(leader.row, unit << unit_shift, unit_shift, leader.scaling,
                     filtered ? leader.row_max() : memory.segment_max(unit), unit_mass,
                     threshold - before, !filtered, [&](float logit, int column) {
                       return logit > -kInfinity &&
                              (!filtered || kept.contains(Keys<Element>::of(logit), column));
                     });
    if (token.column >= 0) {
      write_token(arguments, row_index * arguments.num_samples + sample, token, normalisers);
    }
  }
}

template <typename Element, bool kTeam>
__device__ __forceinline__ void lead_row(const SampleArguments& arguments, int64_t row_index,
                                         const Leader<Element, kTeam>& leader) {
  const Memory& memory = leader.memory;
  const Row<Element>& row = leader.row;
  // Read from shared memory where it is needed: it would not fit the registers.
  const Plan& plan = memory.head()->plan;
  collect();
  const Summary& summary = memory.head()->summary;
  if (summary.status != RowStatus::kValid) {
    write_invalid(arguments, row_index, summary.status);
    return;
  }
  KeptSet kept = {};
  if (plan.one_token) {
    kept.count = 1;
    kept.mass = fixed_mass(1.0f);
  } else if (plan.filtered) {
    kept = find_kept_set(leader, plan, summary);
    fill_segment_masses(leader, kept);
  } else {
    kept.count = memory.state()->num_finite;
    kept.mass = summary.mass;
  }
  Normalisers normalisers = {summary.max, plan.temperature, 0.0, 0.0};
  if (plan.needs_info) {
    normalisers.log_kept = log_of_mass(kept.mass);
    normalisers.log_raw = log_of_mass(summary.raw_mass);
  }
  if (gpu::thread_index() == 0) {
    write_status(arguments, row_index, RowStatus::kValid);
    if (plan.needs_info) {
      arguments.kept[row_index] = static_cast<int64_t>(kept.count);
      const bool all = plan.temperature == 0.0f || kept.mass >= summary.mass;
      arguments.log_kept_mass[row_index] =
          all ? 0.0f : static_cast<float>(normalisers.log_kept - log_of_mass(summary.mass));
    }
  }
  if (plan.one_token) {
    if (gpu::warp_index() != 0) return;
    const Token token = {find_argmax(row, summary.max_segment, summary.max), summary.max};
    for (int64_t sample = gpu::lane_index(); sample < arguments.num_samples; sample += 32) {
      write_token(arguments, row_index * arguments.num_samples + sample, token, normalisers);
    }
    return;
  }
  const int unit_shift = plan.filtered ? unit_shift_of<Element>(memory) : 0;
  const uint64_t mass = accumulate_units(memory, row.num_units(unit_shift));
  draw_samples(arguments, row_index, leader, plan.filtered, kept, mass, normalisers);
}

template <typename Element, bool kTeam>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<kTeam>)
    sample_kernel(SampleArguments arguments) {
  const RowTask<Element, kTeam> task(arguments.logits, arguments.layout,
                                     arguments.filters.valid_vocab, arguments.team);
  const RowStatus status = filter_status(arguments.filters, task.row_index);
  if (status != RowStatus::kValid) {  // the same in the whole team
    if (task.team.leads()) write_invalid(arguments, task.row_index, status);
    return;
  }
  read_row(task, arguments.filters, arguments.kept != nullptr ? Details::kInfo : Details::kNone);
  lead_or_follow(task, [&](const auto& leader) {
    lead_row(arguments, task.row_index, leader);
    return Command();
  });
}

}  // namespace autodeco::cuda
