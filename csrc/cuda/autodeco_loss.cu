#include "autodeco_loss.cuh"
#include "autodeco_loss.h"

namespace autodeco::cuda {
namespace {

// One block a row.
template <typename Arguments, typename Start>
int launch_loss_rows(const Arguments& arguments, void* stream, Start start) {
  if (arguments.layout.num_rows == 0) return cudaSuccess;
  gpu::Launch where;
  where.blocks = arguments.layout.num_rows;
  where.threads = kLossThreads;
  where.shared_bytes = loss_shared_memory_bytes(arguments.layout.vocab);
  where.most_shared_bytes = loss_shared_memory_bytes(int64_t{kMaxSegments} * kSegment);
  where.stream = stream;
  switch (arguments.dtype) {
    case DType::kFloat32:
      return start(0.0f, where);
    case DType::kBFloat16:
      return start(BFloat16(), where);
    default:
      return start(Float16(), where);
  }
}

}  // namespace

int launch_autodeco_loss(const AutodecoLossArguments& arguments, void* stream) {
  return launch_loss_rows(arguments, stream, [&](auto element, const gpu::Launch& where) {
    return gpu::launch(&autodeco_loss_kernel<decltype(element)>, where, arguments);
  });
}

int launch_autodeco_loss_gradient(const AutodecoLossGradientArguments&, void*) {
  return cudaErrorNotSupported;
}

}  // namespace autodeco::cuda
