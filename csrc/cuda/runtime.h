// What the CUDA half of a build can say about itself. Host code only; needs no CUDA header.
#pragma once

namespace autodeco::cuda {

struct RuntimeInfo {
  int runtime_version = 0;  // 13000 for 13.0
  int driver_version = 0;   // 0: no driver
  int num_devices = 0;
  const char* problem = "";  // why no device can be used; empty if one can
};

RuntimeInfo runtime_info();

}  // namespace autodeco::cuda
