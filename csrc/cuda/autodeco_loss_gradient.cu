#include "autodeco_loss_gradient.cuh"
#include "autodeco_loss_gradient.h"
#include "device.cuh"

namespace autodeco::cuda {

int launch_autodeco_loss_gradient(const AutodecoLossGradientArguments& arguments, void* stream) {
  return launch_single_blocks(
      arguments, kLossThreads, &loss_gradient_shared_memory_bytes, stream,
      [&](auto element, const gpu::Launch& where) {
        return gpu::launch<&autodeco_loss_gradient_kernel<decltype(element)>>(where, arguments);
      });
}

}  // namespace autodeco::cuda
