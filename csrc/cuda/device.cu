#include <optional>
#include <vector>

#include "device.cuh"
#include "team.cuh"
#include "team.h"

namespace autodeco::cuda {

// Built for the same architectures as every other kernel.
__global__ void code_version_kernel() {}

int read_device(DeviceProperties& properties) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  // Asked once: nothing of it changes.
  thread_local std::vector<std::optional<DeviceProperties>> known;
  const size_t place = static_cast<size_t>(device);
  if (error == cudaSuccess && place < known.size() && known[place].has_value()) {
    properties = *known[place];
    return cudaSuccess;
  }
  int clusters = 0;
  int together = 0;
  // A device may run code made for an older one, which knows no clusters.
  cudaFuncAttributes code = {};
  const auto ask = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  };
  ask(&properties.multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&clusters, cudaDevAttrClusterLaunch);
  ask(&together, cudaDevAttrCooperativeLaunch);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&code, &code_version_kernel);
  if (error != cudaSuccess) {
    cudaGetLastError();  // a later launch must not find this error
    return error;
  }
  const bool knows_clusters = code.ptxVersion >= 90;
  properties.has_clusters = knows_clusters && clusters != 0;
  properties.has_portable_teams = !knows_clusters && together != 0;
  if (place >= known.size()) known.resize(place + 1);
  known[place] = properties;
  return cudaSuccess;
}

TeamNeeds team_needs(const RowLayout& layout) {
  DeviceProperties device;
  TeamNeeds needs;
  // An error comes again when the kernel is started.
  if (read_device(device) != cudaSuccess || !device.has_portable_teams) return needs;
  const int64_t per_row = static_cast<int64_t>(team_scratch_bytes(layout.vocab));
  needs.blocks_per_row =
      portable_team_size(layout.num_rows, layout.vocab, device.multiprocessors, per_row);
  if (needs.blocks_per_row > 1) needs.bytes = layout.num_rows * per_row;
  return needs;
}

}  // namespace autodeco::cuda
