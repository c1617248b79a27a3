#include "device.cuh"
#include "filter_logits.cuh"
#include "filter_logits.h"

namespace autodeco::cuda {

int launch_filter_kernel(const FilterKernelArguments& arguments, void* stream) {
  return launch_rows(arguments, stream, [&](auto element, auto team, const gpu::Launch& where) {
    return gpu::launch<&filter_logits_kernel<decltype(element), team()>>(where, arguments);
  });
}

int launch_filter_logits(const FilterLogitsArguments& arguments, void* stream) {
  return launch_filter_kernel({arguments}, stream);
}

}  // namespace autodeco::cuda
