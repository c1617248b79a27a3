// Starts the kernel of distribution_stats. Host code only; needs no CUDA header.
#pragma once

#include "autodeco/distribution_stats.h"

namespace autodeco::cuda {

// On the current device, on `stream` (a cudaStream_t). Every pointer of the arguments is device
// memory. Returns 0, or the cudaError_t of the launch.
int launch_distribution_stats(const DistributionStatsArguments& arguments, void* stream);

}  // namespace autodeco::cuda
