// Starts the fused sampler. Host code only; needs no CUDA header.
#pragma once

#include "autodeco/sample.h"

namespace autodeco::cuda {

// Blocks that share a row: a function of the shape of the launch and of the device alone, and not
// visible in the result. Fewer rows than multiprocessors are spread over all of them.
constexpr int cluster_size(int64_t num_rows, int64_t vocab, int multiprocessors,
                           bool has_clusters) {
  constexpr int64_t kMinColumnsPerBlock = 8192;
  int cluster = 1;
  while (has_clusters && cluster < 8 && num_rows * cluster * 2 <= 2 * multiprocessors &&
         vocab >= cluster * 2 * kMinColumnsPerBlock) {
    cluster *= 2;
  }
  return cluster;
}

// On the current device, on `stream` (a cudaStream_t). Every pointer of the arguments is device
// memory. Returns 0, or the cudaError_t of the launch.
int launch_sample(const SampleArguments& arguments, void* stream);

}  // namespace autodeco::cuda
