// The streaming read: maximum and sum of weights of every segment.
#pragma once

#include "histogram.cuh"

namespace autodeco::cuda {

__device__ __forceinline__ Plan make_plan(const FilterParameters& filters, int64_t row,
                                          int64_t columns, Details details) {
  Plan plan;
  plan.temperature = value_at(filters.temperature, row);
  plan.status = temperature_status(plan.temperature);
  if (plan.status != RowStatus::kValid) plan.temperature = 1.0f;
  plan.top_p = value_at(filters.top_p, row);
  const float min_p = value_at(filters.min_p, row);
  plan.min_p = min_p > 0.0f ? min_p : 0.0f;
  const int64_t top_k = value_at(filters.top_k, row);
  plan.top_k = top_k < columns ? static_cast<uint64_t>(top_k) : 0;
  plan.one_token =
      plan.temperature == 0.0f || plan.top_p <= 0.0f || plan.min_p > 1.0f || top_k == 1;
  plan.filtered = !plan.one_token && (plan.top_p < 1.0f || plan.top_k != 0 || plan.min_p != 0.0f);
  plan.needs_info = details == Details::kInfo;
  plan.needs_count = details != Details::kNone && !plan.one_token && !plan.filtered;
  plan.needs_digit = plan.filtered && plan.top_p < 1.0f && plan.top_k > kListCapacity;
  plan.needs_sums = plan.temperature != 0.0f && (!plan.one_token || plan.needs_info);
  // Tokens 2^-bits times as probable as the first: of 2^17 such, 2^(17 - bits) is the mass. A count
  // says nothing about probabilities.
  float bits = 0.0f;
  if (plan.top_p < 1.0f) {
    const float left_out = 1.0f - plan.top_p;
    bits = 10.0f - log2f(left_out > 0x1p-20f ? left_out : 0x1p-20f);
  }
  if (plan.top_k != 0) bits = 24.0f;
  if (plan.top_k == 0 && plan.top_p >= 1.0f) {
    bits = 0.01f - log2f(plan.min_p > 0x1p-40f ? plan.min_p : 0x1p-40f);
  }
  plan.window = bits * 0.693147181f * plan.temperature;
  return plan;
}

// Sum of weights relative to `reference`, in an order that depends on nothing but the segment. In
// a tree: ten roundings at most.
template <bool kPlain>
__device__ __forceinline__ float segment_weight(const float* logits, const Scaling& scaling,
                                                float reference) {
  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float weights[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      weights[i] = gpu::exp2_approximate(
          scaling.template exponent<kPlain>(logits[v * kVector + i], reference));
    }
    sum += ((weights[0] + weights[1]) + (weights[2] + weights[3])) +
           ((weights[4] + weights[5]) + (weights[6] + weights[7]));
  }
  return warp_sum(sum);
}

// Counts the first digit of the logits that a lane holds.
template <typename Element>
__device__ __forceinline__ void count_first_digit(const float* logits, const Bins& bins) {
  PendingBin pending;
#pragma unroll
  for (int i = 0; i < kLaneLogits; ++i) {
    if (logits[i] == -kInfinity) continue;
    pending.add(bins, Keys<Element>::of(logits[i]) >> (Keys<Element>::kBits - kDigitBits), 0);
  }
  pending.flush(bins);
}

// Results per segment go to the leader; the block that owns a segment also keeps its maxima. Ends
// without a barrier.
template <typename Element, bool kTeam>
__device__ __forceinline__ void summarize(const Row<Element>& row, const Team<kTeam>& team,
                                          const Plan& plan, const Scaling& scaling,
                                          const Memory& memory) {
  const int warp = static_cast<int>(gpu::warp_index());
  const bool leads = team.leads();
  for (int segment = team.first_segment + warp; segment < team.last_segment;
       segment += num_warps()) {
    float logits[kLaneLogits];
    row.load_segment(segment, logits);
    float max = logits[0];
#pragma unroll
    for (int i = 1; i < kLaneLogits; ++i) max = gpu::max_or_nan(max, logits[i]);
    const auto larger = [](float a, float b) { return gpu::max_or_nan(a, b); };
#pragma unroll
    for (int mask = 1; mask < kPieceLanes; mask *= 2) {
      max = larger(max, gpu::shuffle_xor(max, mask));
    }
    if (gpu::lane_index() % kPieceLanes == 0) {
      const int piece = segment * kPieces + static_cast<int>(gpu::lane_index()) / kPieceLanes;
      memory.piece_max()[piece] = max;
      if (!leads) team.in_leader(memory.piece_max())[piece] = max;
    }
#pragma unroll
    for (int mask = kPieceLanes; mask < 32; mask *= 2) {
      max = larger(max, gpu::shuffle_xor(max, mask));
    }
    const bool finite = max > -kInfinity && max < kInfinity;
    float sum = 0.0f;
    float raw_sum = 0.0f;
    if (finite && plan.needs_sums) {
      sum = scaling.is_plain() ? segment_weight<true>(logits, scaling, max)
                               : segment_weight<false>(logits, scaling, max);
    }
    if (finite && plan.needs_info) {
      raw_sum = segment_weight<true>(logits, Scaling(1.0f), max);
    }
    if (finite && plan.needs_count) {
      unsigned count = 0;
#pragma unroll
      for (int i = 0; i < kLaneLogits; ++i) count += logits[i] > -kInfinity;
      count = warp_sum(count);
      if (gpu::lane_index() == 0) {
        gpu::atomic_add(team.in_leader(&memory.state()->num_finite), count);
      }
    }
    if (plan.needs_digit) count_first_digit<Element>(logits, bins_of(memory.count_histogram()));
    if (gpu::lane_index() == 0) {
      team.in_leader(memory.segment_sum())[segment] = sum;
      if (plan.needs_info) team.in_leader(memory.segment_raw_sum())[segment] = raw_sum;
    }
  }
  if (plan.needs_digit && !leads) {
    gpu::block_barrier();
    add_to_leader(team, memory, bins_of(memory.count_histogram()));
  }
}

// Before the streaming read; ends with a barrier of the team.
template <bool kTeam>
__device__ __forceinline__ void reset(const Team<kTeam>& team, const Plan& plan,
                                      const Memory& memory) {
  if (plan.needs_digit) clear_of_team(team, memory, bins_of(memory.count_histogram()));
  if (gpu::thread_index() == 0) {
    memory.head()->plan = plan;
    if (team.leads()) memory.state()->num_finite = 0;
  }
  team.barrier();
}

// The product of two floats is exact in double; the rest is rounded once, as in fixed_mass.
__device__ __forceinline__ uint64_t segment_mass(float sum, float weight_of_max) {
  return static_cast<uint64_t>(
      fma(static_cast<double>(sum) * static_cast<double>(weight_of_max), kMassScale, 0.5));
}

__device__ __forceinline__ void keep(const Summary& summary, Head* head) {
  if (gpu::thread_index() == 0) head->summary = summary;
  gpu::block_barrier();
}

// By the leader after the streaming read: fills head()->summary.
__device__ __forceinline__ void add_up_segments() {
  const Digest& row = digest_of_block();
  const Memory& memory = row.memory;
  const Scaling scaling = row.scaling;
  Head* head = memory.head();
  const Plan& plan = head->plan;
  const int thread = static_cast<int>(gpu::thread_index());
  const int threads = static_cast<int>(gpu::num_threads());
  Summary summary = {};
  float max = -kInfinity;
#pragma unroll 1
  for (int segment = thread; segment < row.num_segments; segment += threads) {
    max = gpu::max_or_nan(max, memory.segment_max(segment));
  }
  max = block_max(max, head->scratch_float);
  summary.max = max;
  summary.status = logits_status(max);
  if (summary.status != RowStatus::kValid) {
    keep(summary, head);
    return;
  }
  uint32_t first = static_cast<uint32_t>(row.num_segments);
  uint64_t mass = 0;
  uint64_t raw_mass = 0;
#pragma unroll 1
  for (int segment = thread; segment < row.num_segments; segment += threads) {
    const float segment_max = memory.segment_max(segment);
    if (segment_max == max && static_cast<uint32_t>(segment) < first) {
      first = static_cast<uint32_t>(segment);
    }
    if (plan.needs_sums) {
      const uint64_t part =
          segment_mass(memory.segment_sum()[segment], scaling.weight(segment_max, max));
      memory.segment_mass()[segment] = part;
      mass += part;
    }
    if (plan.needs_info) {
      raw_mass +=
          segment_mass(memory.segment_raw_sum()[segment], Scaling(1.0f).weight(segment_max, max));
    }
  }
  summary.max_segment = static_cast<int>(block_reduce(
      first, head->scratch32, 0xffffffffu, [](uint32_t a, uint32_t b) { return a < b ? a : b; }));
  if (plan.needs_sums) summary.mass = block_sum(mass, head->scratch64);
  if (plan.needs_info) summary.raw_mass = block_sum(raw_mass, head->scratch64);
  keep(summary, head);
}

// As a call, for kernels whose caller keeps few registers meanwhile.
__device__ AUTODECO_CALLED void collect() { add_up_segments(); }

}  // namespace autodeco::cuda
