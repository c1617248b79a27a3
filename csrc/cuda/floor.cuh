// Reads every logit once and keeps the maximum: what a kernel of one streaming read is measured
// against. A block reads one part of one row, a warp segments of it; NaN wins.
#pragma once

#include "autodeco/floor.h"
#include "row.cuh"

namespace autodeco::cuda {

constexpr int kFloorThreads = 128;

// The arguments are constant memory: a copy of the layout, which is indexed, would be on the stack.
template <typename Element>
__global__ void __launch_bounds__(kFloorThreads)
    floor_kernel(const __grid_constant__ FloorArguments arguments) {
  const int64_t row_index = gpu::block_index() / arguments.columns;
  const int part = static_cast<int>(gpu::block_index() % arguments.columns);
  const int parts = static_cast<int>(arguments.columns);
  const Row<Element> row(arguments.logits, row_offset(arguments.layout, row_index),
                         arguments.layout.vocab);
  const int first = row.num_segments * part / parts;
  const int last = row.num_segments * (part + 1) / parts;
  float* scratch = reinterpret_cast<float*>(gpu::shared_memory());
  const float max = max_of_segments(row, first, last, scratch);
  if (gpu::thread_index() == 0) arguments.output[row_index * parts + part] = max;
}

}  // namespace autodeco::cuda
