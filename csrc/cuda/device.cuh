// What launchers share: the element type, and for row kernels the blocks of a row, by asking the
// device, and the shared memory.
#pragma once

#include <type_traits>

#include "autodeco/team_scratch.h"
#include "row_memory.cuh"
#include "team.h"

namespace autodeco::cuda {

struct DeviceProperties {
  int multiprocessors = 0;
  bool has_clusters = false;        // and code that knows them
  bool has_portable_teams = false;  // code that knows no clusters, and may wait for other blocks
};

// Of the current device. Returns 0 or a cudaError_t.
int read_device(DeviceProperties& properties);

// Calls start(element) with an element of the type that `dtype` names.
template <typename Start>
int with_element(DType dtype, Start start) {
  switch (dtype) {
    case DType::kFloat32:
      return start(0.0f);
    case DType::kBFloat16:
      return start(BFloat16());
    default:
      return start(Float16());
  }
}

// One block a row, of `threads`. shared_bytes(vocab) is what it needs; start(element, launch) is
// called with the element type that the arguments name.
template <typename Arguments, typename SharedBytes, typename Start>
int launch_single_blocks(const Arguments& arguments, unsigned threads, SharedBytes shared_bytes,
                         void* stream, Start start) {
  if (arguments.layout.num_rows == 0) return cudaSuccess;
  gpu::Launch where;
  where.blocks = arguments.layout.num_rows;
  where.threads = threads;
  where.shared_bytes = shared_bytes(arguments.layout.vocab);
  where.most_shared_bytes = shared_bytes(int64_t{kMaxSegments} * kSegment);
  where.stream = stream;
  return with_element(arguments.dtype, [&](auto element) { return start(element, where); });
}

// Calls start(element, team, launch) with the element type that the arguments name and whether
// several blocks share a row.
template <typename Arguments, typename Start>
int launch_rows(const Arguments& arguments, void* stream, Start start) {
  const int64_t num_rows = arguments.layout.num_rows;
  if (num_rows == 0) return cudaSuccess;
  DeviceProperties device;
  const int error = read_device(device);
  if (error != cudaSuccess) return error;
  gpu::Launch where;
  where.blocks = num_rows;
  where.threads = kThreads;
  where.shared_bytes = shared_memory_bytes(arguments.layout.vocab);
  where.most_shared_bytes = shared_memory_bytes(int64_t{kMaxSegments} * kSegment);
  where.stream = stream;
  gpu::Launch shared = where;
  if (arguments.team.memory != nullptr) {
    shared.together = true;
    shared.blocks *= arguments.team.blocks_per_row;
  } else if (device.has_clusters) {
    const int blocks = cluster_size(num_rows, arguments.layout.vocab, device.multiprocessors);
    shared.cluster = static_cast<unsigned>(blocks);
    shared.blocks *= blocks;
  }
  return with_element(arguments.dtype, [&](auto element) -> int {
    if (shared.blocks == num_rows) return start(element, std::false_type(), where);
    const int result = start(element, std::true_type(), shared);
    // A process may have fewer multiprocessors than the device says (MPS), or none side by side.
    const bool lacks_room = result == cudaErrorCooperativeLaunchTooLarge ||
                            result == cudaErrorInvalidClusterSize ||
                            result == cudaErrorLaunchOutOfResources;
    return lacks_room ? start(element, std::false_type(), where) : result;
  });
}

}  // namespace autodeco::cuda
