#include "device.cuh"
#include "floor.cuh"
#include "floor.h"

namespace autodeco::cuda {

int launch_floor(const FloorArguments& arguments, void* stream) {
  if (arguments.layout.num_rows == 0) return cudaSuccess;
  gpu::Launch where;
  where.blocks = arguments.layout.num_rows * arguments.columns;
  where.threads = kFloorThreads;
  where.shared_bytes = kMaxWarps * sizeof(float);
  where.stream = stream;
  return with_element(arguments.dtype, [&](auto element) {
    return gpu::launch<&floor_kernel<decltype(element)>>(where, arguments);
  });
}

}  // namespace autodeco::cuda
