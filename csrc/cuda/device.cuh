// What every launcher of a row kernel does: asks the device, chooses the cluster, the element type
// and the shared memory.
#pragma once

#include <type_traits>

#include "row_memory.cuh"
#include "sample.h"

namespace autodeco::cuda {

struct DeviceProperties {
  int multiprocessors = 0;
  bool has_clusters = false;
};

inline int read_device(DeviceProperties& properties) {
  int device = 0;
  int clusters = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error =
        cudaDeviceGetAttribute(&properties.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
  }
  if (error != cudaSuccess) cudaGetLastError();  // a later launch must not find this error
  properties.has_clusters = clusters != 0;
  return error;
}

// Calls start(element, team, launch) with the element type that the arguments name and whether
// several blocks share a row.
template <typename Arguments, typename Start>
int launch_rows(const Arguments& arguments, void* stream, Start start) {
  if (arguments.layout.num_rows == 0) return cudaSuccess;
  DeviceProperties device;
  const int error = read_device(device);
  if (error != cudaSuccess) return error;
  gpu::Launch where;
  where.cluster =
      static_cast<unsigned>(cluster_size(arguments.layout.num_rows, arguments.layout.vocab,
                                         device.multiprocessors, device.has_clusters));
  where.threads = kThreads;
  where.shared_bytes = shared_memory_bytes(arguments.layout.vocab);
  where.most_shared_bytes = shared_memory_bytes(int64_t{kMaxSegments} * kSegment);
  where.stream = stream;
  const auto with_team = [&](auto element) -> int {
    where.blocks = arguments.layout.num_rows * where.cluster;
    const int result = where.cluster > 1 ? start(element, std::true_type(), where)
                                         : start(element, std::false_type(), where);
    if (where.cluster == 1 || result != cudaErrorNotSupported) return result;
    where.cluster = 1;
    where.blocks = arguments.layout.num_rows;
    return start(element, std::false_type(), where);
  };
  switch (arguments.dtype) {
    case DType::kFloat32:
      return with_team(0.0f);
    case DType::kBFloat16:
      return with_team(BFloat16());
    default:
      return with_team(Float16());
  }
}

}  // namespace autodeco::cuda
