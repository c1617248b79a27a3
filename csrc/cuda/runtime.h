// What the CUDA half of a build can say about itself. Host code only; needs no CUDA header.
#pragma once

#include <cstddef>

namespace autodeco::cuda {

struct RuntimeInfo {
  int runtime_version = 0;  // 13000 for 13.0
  int driver_version = 0;   // 0: no driver
  int num_devices = 0;
  const char* problem = "";  // why no device can be used; empty if one can
};

RuntimeInfo runtime_info();

// Makes a device current. Torch has a CUDA runtime of its own, so its device guard alone is no
// promise for this one. Returns 0 or a cudaError_t.
int use_device(int device_index);

// What a launcher returns in a build without CUDA; no cudaError_t has this value.
constexpr int kNotBuilt = -1;

// Why a launcher did not return 0.
const char* error_text(int error);

// Copies one value from the device; what writes it must have ended. Returns 0 or a cudaError_t.
int read_value(const void* device_address, void* host_address, size_t bytes);

}  // namespace autodeco::cuda
