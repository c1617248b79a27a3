// Starts the kernel of filter_logits. Host code only; needs no CUDA header.
#pragma once

#include "autodeco/filter_logits.h"
#include "autodeco/last_kept.h"

namespace autodeco::cuda {

// Almost all of the kernel is the search for what a row keeps. So kept_indices starts it as well,
// for that alone: a kernel of its own would be as large and as long to compile.
struct FilterKernelArguments : FilterLogitsArguments {
  // Where `counts` is not null, nothing is written to the output.
  LastKept* last = nullptr;   // [rows], of rows that keep something
  int64_t* counts = nullptr;  // [rows], 0 if the row is invalid
};

// On the current device, on `stream` (a cudaStream_t). Every pointer of the arguments is device
// memory. Return 0, or the cudaError_t of the launch.
int launch_filter_logits(const FilterLogitsArguments& arguments, void* stream);
int launch_filter_kernel(const FilterKernelArguments& arguments, void* stream);

}  // namespace autodeco::cuda
