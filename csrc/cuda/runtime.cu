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

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int read_value(const void* device_address, void* host_address, size_t bytes) {
  return cudaMemcpy(host_address, device_address, bytes, cudaMemcpyDeviceToHost);
}

}  // namespace autodeco::cuda
