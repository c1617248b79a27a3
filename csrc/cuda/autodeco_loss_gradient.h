// Starts the kernel of the training losses' gradient with respect to the logits. Host code only;
// needs no CUDA header.
#pragma once

#include "autodeco/autodeco_loss.h"

namespace autodeco::cuda {

// On the current device, on `stream` (a cudaStream_t). Every pointer of the arguments is device
// memory. Returns 0, or the cudaError_t of the launch.
int launch_autodeco_loss_gradient(const AutodecoLossGradientArguments& arguments, void* stream);

}  // namespace autodeco::cuda
