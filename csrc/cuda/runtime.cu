#include <cuda_runtime.h>

#include "runtime.h"

namespace autodeco::cuda {

RuntimeInfo runtime_info() {
  RuntimeInfo info;
  cudaError_t error = cudaRuntimeGetVersion(&info.runtime_version);
  if (error == cudaSuccess) error = cudaDriverGetVersion(&info.driver_version);
  if (error == cudaSuccess) error = cudaGetDeviceCount(&info.num_devices);
  if (error != cudaSuccess) {
    info.num_devices = 0;
    info.problem = cudaGetErrorString(error);
    cudaGetLastError();  // a later launch must not find this error
  }
  return info;
}

}  // namespace autodeco::cuda
