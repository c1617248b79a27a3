// Starts the kernel of predict_parameters. Host code only; needs no CUDA header.
#pragma once

#include "autodeco/predict_parameters.h"

namespace autodeco::cuda {

// On the current device, on `stream` (a cudaStream_t). Every pointer of the arguments is device
// memory. Returns 0, or the cudaError_t of the launch.
int launch_predict_parameters(const PredictParametersArguments& arguments, void* stream);

}  // namespace autodeco::cuda
