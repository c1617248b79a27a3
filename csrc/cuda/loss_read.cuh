// Everything that the losses of a row need before the walk over its tokens: either way of reading
// it.
#pragma once

#include "loss_counts.cuh"
#include "loss_rows.cuh"

namespace autodeco::cuda {

__device__ __forceinline__ float clamped(float temperature, float clamp) {
  return temperature < clamp ? clamp : temperature;
}

// Leaves head()->known.
template <typename Element>
__device__ __forceinline__ void know_row(const Row<Element>& row, const LossOptions& options,
                                         float temperature, float top_p, int label) {
  keep(LossMemory::head()->known, {clamped(temperature, options.temperature_clamp),
                                   clamped(temperature, options.top_p_temperature_clamp), top_p,
                                   label, to_float(row.data[label])});
}

// How many values occur, 0 if the counts do not suffice. Leaves head()->sums.
template <typename Element>
__device__ __forceinline__ int read_counted_row(const Row<Element>&) {
  return 0;
}
template <>
__device__ __forceinline__ int read_counted_row(const Row<BFloat16>& row) {
  LossHead* head = LossMemory::head();
  const uint32_t label_rank = count_values(row, head->known);
  const int num_values = list_values();
  if (!counts_suffice(num_values, head->known)) return 0;
  sum_values(num_values, head->known, label_rank);
  return num_values;
}

// All that a row needs before its walk. Leaves head()->streamed, lists and sums.
template <typename Element>
__device__ __forceinline__ RowStatus read_streamed_row(const Row<Element>& row,
                                                       const SoftTopPWalk& start) {
  LossHead* head = LossMemory::head();
  const LossRow& known = head->known;
  const StreamedRow& streamed = head->streamed;
  float anchor = -kInfinity;
  float fineness = 1.0f;
  // So that a row is read four times at most: a bfloat16 row was read once for its counts.
  int most_narrowings = std::is_same_v<Element, BFloat16> ? 1 : 2;
#pragma unroll 1
  for (;;) {
    stream_row(row, known, anchor, fineness);
    if (streamed.status != RowStatus::kValid) return streamed.status;
    settle_bins();
    find_cut(start.steepness, start.top_p);
    if (anchor > -kInfinity) break;
    fineness = needed_fineness(start.steepness);
    if (fineness == 1.0f && streamed.top <= kFarthestBin) break;
    anchor = streamed.max;
    --most_narrowings;
    gpu::block_barrier();  // the bins have been read
  }
  plan_lists(start.steepness);
  list_tokens(row, known, streamed, most_narrowings);
  sum_listed(known, streamed, head->lists);
  split_crossing(known, streamed.grid, start.exclusive);
  if (gpu::thread_index() == 0) sum_other(known, streamed, head->sums);
  return RowStatus::kValid;
}

}  // namespace autodeco::cuda
