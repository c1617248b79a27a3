// The two training losses of a row, and their gradients with respect to T and P. Grid: a block a
// row. Shared memory: loss_memory.cuh. docs/kernels.md has the algorithm.
#pragma once

#include "loss_counts.cuh"
#include "loss_rows.cuh"

namespace autodeco::cuda {

// The sums of a row are left in head()->sums, and those of the walk in `walked`.
template <typename Element>
__device__ __forceinline__ bool walk_counted_row(const Row<Element>&, const SoftTopPWalk&,
                                                 SoftTopPWalk&) {
  return false;
}
// False if the values do not fit the table.
template <>
__device__ __forceinline__ bool walk_counted_row(const Row<BFloat16>& row,
                                                 const SoftTopPWalk& start, SoftTopPWalk& walked) {
  LossHead* head = LossMemory::head();
  const uint32_t label_rank = count_values(row, head->known);
  const int num_values = list_values();
  if (!counts_suffice(num_values, head->known)) return false;
  sum_values(num_values, head->known, label_rank);
  walked = walk_values(num_values, start, head->known, head->sums);
  return true;
}

template <typename Element>
__device__ __forceinline__ RowStatus walk_streamed_row(const Row<Element>& row,
                                                       const SoftTopPWalk& start,
                                                       SoftTopPWalk& walked) {
  LossHead* head = LossMemory::head();
  const LossRow& known = head->known;
  const StreamedRow& streamed = head->streamed;
  float anchor = -kInfinity;
  float fineness = 1.0f;
  // So that a row is read four times at most: a bfloat16 row was read once for its counts.
  int most_narrowings = std::is_same_v<Element, BFloat16> ? 1 : 2;
  BinTotals totals;
#pragma unroll 1
  for (;;) {
    stream_row(row, known, anchor, fineness);
    if (streamed.status != RowStatus::kValid) return streamed.status;
    totals = settle_bins(known, streamed);
    if (anchor > -kInfinity) break;
    const bool narrow = is_narrow(streamed, totals);
    if (!narrow && streamed.top <= kFarthestBin) break;
    anchor = streamed.max;
    if (narrow) fineness = kFineness;
    --most_narrowings;
    gpu::block_barrier();  // the bins have been read
  }
  list_tokens(row, known, streamed, totals, start, most_narrowings);
  sum_listed(known, streamed, head->lists);
  if (gpu::thread_index() == 0) sum_other(known, streamed, head->sums);
  walked = walk_listed(start, known, streamed, head->lists, head->sums);
  return RowStatus::kValid;
}

__device__ __forceinline__ void write_losses(const AutodecoLossArguments& arguments, int64_t row,
                                             const LossOutput& output, bool counts_first,
                                             bool counts_second, RowStatus status) {
  const int64_t rows = arguments.layout.num_rows;
  arguments.losses[row] = counts_first ? output.losses[0] : 0.0f;
  arguments.losses[rows + row] = counts_second ? output.losses[1] : 0.0f;
  arguments.gradients[row] = counts_first ? output.gradients[0] : 0.0f;
  arguments.gradients[rows + row] = counts_second ? output.gradients[1] : 0.0f;
  arguments.gradients[2 * rows + row] = counts_second ? output.gradients[2] : 0.0f;
  arguments.counted[row] = counts_first;
  arguments.counted[rows + row] = counts_second;
  arguments.status[row] = status;
}

__device__ __forceinline__ LossOutput no_losses() {
  const float nan = std::bit_cast<float>(0x7fc00000u);
  return {{nan, nan}, {nan, nan, nan}};
}

__device__ __forceinline__ float clamped(float temperature, float clamp) {
  return temperature < clamp ? clamp : temperature;
}

template <typename Element>
__global__ void __launch_bounds__(kLossThreads, kBlocksPerMultiprocessor<false>)
    autodeco_loss_kernel(const __grid_constant__ AutodecoLossArguments arguments) {
  gpu::promise_num_threads<kLossThreads>();
  const int64_t row_index = gpu::block_index();
  const bool writes = gpu::thread_index() == 0;
  const int64_t label = arguments.labels[row_index];
  if (label == arguments.ignore_index) {
    if (writes) {
      write_losses(arguments, row_index, LossOutput(), false, false, RowStatus::kValid);
    }
    return;
  }
  const float temperature = arguments.temperature[row_index];
  const float top_p = arguments.top_p[row_index];
  const LossOptions& options = arguments.options;
  RowStatus status = loss_status(temperature, top_p, label, arguments.layout.vocab, options);
  if (status != RowStatus::kValid) {
    if (writes) write_losses(arguments, row_index, no_losses(), true, true, status);
    return;
  }
  const Row<Element> row(arguments.logits, row_offset(arguments.layout, row_index),
                         arguments.layout.vocab);
  LossHead* head = LossMemory::head();
  keep(head->known, {clamped(temperature, options.temperature_clamp),
                     clamped(temperature, options.top_p_temperature_clamp), top_p,
                     static_cast<int>(label), to_float(row.data[label])});
  const SoftTopPWalk start = start_walk(options, top_p);
  SoftTopPWalk walked = start;
  if (!walk_counted_row(row, start, walked)) status = walk_streamed_row(row, start, walked);
  if (!writes) return;
  if (status != RowStatus::kValid) {
    write_losses(arguments, row_index, no_losses(), true, true, status);
    return;
  }
  const bool easy = head->known.label_logit == head->sums.max && head->sums.label_rank == 1;
  const bool dropped = easy && arguments.drop_uniform != nullptr &&
                       arguments.drop_uniform[row_index] < arguments.easy_token_drop;
  const LossOutput output = finish_losses(options, head->known, head->sums, walked, temperature);
  write_losses(arguments, row_index, output, !dropped, !(dropped && options.megatron),
               RowStatus::kValid);
}

}  // namespace autodeco::cuda
