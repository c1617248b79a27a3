// Starts the two kernels of kept_indices. Host code only; needs no CUDA header.
#pragma once

#include "autodeco/kept_indices.h"

namespace autodeco::cuda {

// On the current device, on `stream` (a cudaStream_t). Every pointer of the arguments is device
// memory. Return 0, or the cudaError_t of the launch.
int launch_count_kept(const KeptIndicesArguments& arguments, void* stream);
int launch_write_kept(const KeptIndicesArguments& arguments, void* stream);

}  // namespace autodeco::cuda
