#include "autodeco_loss.cuh"
#include "autodeco_loss.h"
#include "device.cuh"

namespace autodeco::cuda {

int launch_autodeco_loss(const AutodecoLossArguments& arguments, void* stream) {
  return launch_single_blocks(arguments, kLossThreads, &loss_shared_memory_bytes, stream,
                              [&](auto element, const gpu::Launch& where) {
                                return gpu::launch<&autodeco_loss_kernel<decltype(element)>>(
                                    where, arguments);
                              });
}

}  // namespace autodeco::cuda
