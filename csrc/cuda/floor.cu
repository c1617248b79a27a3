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
  switch (arguments.dtype) {
    case DType::kFloat32:
      return gpu::launch(&floor_kernel<float>, where, arguments);
    case DType::kBFloat16:
      return gpu::launch(&floor_kernel<BFloat16>, where, arguments);
    default:
      return gpu::launch(&floor_kernel<Float16>, where, arguments);
  }
}

}  // namespace autodeco::cuda
