#include "autodeco_loss_gradient.cuh"
#include "autodeco_loss_gradient.h"
#include "device.cuh"

namespace autodeco::cuda {

// One block a row.
int launch_autodeco_loss_gradient(const AutodecoLossGradientArguments& arguments, void* stream) {
  if (arguments.layout.num_rows == 0) return cudaSuccess;
  gpu::Launch where;
  where.blocks = arguments.layout.num_rows;
  where.threads = kLossThreads;
  where.shared_bytes = loss_gradient_shared_memory_bytes(arguments.layout.vocab);
  where.most_shared_bytes = loss_gradient_shared_memory_bytes(int64_t{kMaxSegments} * kSegment);
  where.stream = stream;
  return with_element(arguments.dtype, [&](auto element) {
    return gpu::launch(&autodeco_loss_gradient_kernel<decltype(element)>, where, arguments);
  });
}

}  // namespace autodeco::cuda
