// The two training losses of a row, and their gradients with respect to T and P. Grid: a block a
// row. Shared memory: loss_memory.cuh. docs/loss-kernels.md has the algorithm.
#pragma once

#include "loss_read.cuh"

namespace autodeco::cuda {

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

__device__ __forceinline__ LossOutput no_losses() { return {{kNaN, kNaN}, {kNaN, kNaN, kNaN}}; }

// What to say of a row whose label, T or P is at fault. The logits come before T and P: where they
// are NaN, the temperature that a head made of them is too.
template <typename Element>
__device__ __forceinline__ RowStatus first_fault(const Row<Element>& row, RowStatus fault) {
  if (fault == RowStatus::kLabelOutsideVocab) return fault;
  const float max = max_of_segments(row, 0, row.num_segments, LossMemory::head()->warp_max[0]);
  const RowStatus of_logits = logits_status(max);
  return of_logits == RowStatus::kValid ? fault : of_logits;
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
  const Row<Element> row(arguments.logits, row_offset(arguments.layout, row_index),
                         arguments.layout.vocab);
  if (status != RowStatus::kValid) {
    status = first_fault(row, status);
    if (writes) write_losses(arguments, row_index, no_losses(), true, true, status);
    return;
  }
  LossHead* head = LossMemory::head();
  know_row(row, options, temperature, top_p, static_cast<int>(label));
  const SoftTopPWalk start = start_walk(options, top_p);
  SoftTopPWalk walked = start;
  SumItems items;
  const int num_values = read_counted_row(row);
  if (num_values != 0) {
    walked = walk_values(num_values, start, head->known, head->sums, items);
  } else {
    status = read_streamed_row(row, start);
    if (status == RowStatus::kValid) {
      walked = walk_listed(start, head->known, head->streamed, head->lists, head->sums, items);
    }
  }
  // The read ended at the infinity: NaN, which comes first, may lie behind it.
  if (status == RowStatus::kLogitPositiveInfinity) status = first_fault(row, status);
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
