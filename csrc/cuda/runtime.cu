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
    // Without a driver, CUDA says that the driver is too old.
    info.problem =
        info.driver_version == 0 ? "there is no NVIDIA driver" : cudaGetErrorString(error);
    cudaGetLastError();  // a later launch must not find this error
  }
  return info;
}

int use_device(int device_index) {
  const cudaError_t error = cudaSetDevice(device_index);
  if (error != cudaSuccess) cudaGetLastError();  // a later launch must not find this error
  return error;
}

const char* error_text(int error) {
  if (error == cudaErrorNoKernelImageForDevice) {
    return "this build has no code for this GPU, only for " AUTODECO_CUDA_ARCHITECTURES
           " (AUTODECO_CUDA_ARCHS)";
  }
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

int read_value(const void* device_address, void* host_address, size_t bytes) {
  const cudaError_t error = cudaMemcpy(host_address, device_address, bytes, cudaMemcpyDeviceToHost);
  if (error != cudaSuccess) cudaGetLastError();  // a later launch must not find this error
  return error;
}

}  // namespace autodeco::cuda
