// Runs the two kernels of kept_indices on the emulated device, with buffers of exactly the right
// size.
#pragma once

#include "emulated_kernels.h"
#include "kept_indices.cuh"

namespace autodeco::tests {

struct KeptResult {
  std::vector<int64_t> offsets;
  std::vector<int32_t> ids;
  std::vector<RowStatus> status;
  uint64_t bytes_to_decide = 0;  // loaded by the first kernel
  uint64_t bytes_to_write = 0;   // and by the second
};

constexpr int64_t kAllIds = -1;  // as a capacity: as many as there are

// Rows with the same parameters.
template <typename Element>
KeptResult kept_indices(const Batch<Element>& batch, const Filters& filters, Shape shape,
                        int64_t valid_vocab, int64_t capacity = kAllIds) {
  const size_t rows = static_cast<size_t>(batch.num_rows);
  KeptIndicesArguments arguments;
  arguments.logits = batch.memory.data() + batch.misaligned;
  arguments.dtype = dtype_of<Element>();
  arguments.layout = batch.layout();
  arguments.filters = same_for_all(filters, valid_vocab);
  KeptResult result;
  result.offsets.assign(rows + 1, -7);
  result.offsets[0] = 0;
  result.status.assign(rows, RowStatus::kNoFiniteLogit);
  std::vector<LastKept> last(rows, {0, 1 << 20});  // of a row that keeps everything
  arguments.offsets = result.offsets.data();
  arguments.status = result.status.data();
  arguments.last = last.data();
  uint64_t before = emulation::device.bytes_loaded;
  run_rows(&cuda::filter_logits_kernel<Element, false>, &cuda::filter_logits_kernel<Element, true>,
           cuda::count_kept_arguments(arguments), shape);
  result.bytes_to_decide = emulation::device.bytes_loaded - before;
  std::partial_sum(result.offsets.begin(), result.offsets.end(), result.offsets.begin());

  arguments.capacity = capacity == kAllIds ? result.offsets.back() : capacity;
  result.ids.assign(static_cast<size_t>(arguments.capacity), -1);
  arguments.ids = result.ids.data();
  before = emulation::device.bytes_loaded;
  run_rows(&cuda::write_kept_kernel<Element, false>, &cuda::write_kept_kernel<Element, true>,
           arguments, shape,
           cuda::marks_bytes(arguments.layout.vocab, static_cast<unsigned>(shape.blocks)));
  result.bytes_to_write = emulation::device.bytes_loaded - before;
  return result;
}

}  // namespace autodeco::tests
