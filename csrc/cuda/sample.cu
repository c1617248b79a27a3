#include "device.cuh"
#include "sample.cuh"
#include "sample.h"

namespace autodeco::cuda {

int launch_sample(const SampleArguments& arguments, void* stream) {
  return launch_rows(arguments, stream, [&](auto element, auto cluster, const gpu::Launch& where) {
    return gpu::launch(&sample_kernel<decltype(element), cluster()>, where, arguments);
  });
}

}  // namespace autodeco::cuda
