#include "device.cuh"
#include "sample.cuh"
#include "sample.h"

namespace autodeco::cuda {

int launch_sample(const SampleArguments& arguments, void* stream) {
  return launch_rows(arguments, stream, [&](auto element, auto team, const gpu::Launch& where) {
    return gpu::launch<&sample_kernel<decltype(element), team()>>(where, arguments);
  });
}

}  // namespace autodeco::cuda
