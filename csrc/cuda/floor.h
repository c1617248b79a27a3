// Starts the floor kernel. Host code only; needs no CUDA header.
#pragma once

#include "autodeco/floor.h"

namespace autodeco::cuda {

// Parts of a row that blocks of their own read: many small blocks use the bandwidth best, and a
// warp has at least one segment of 1024 columns.
constexpr int64_t floor_parts(int64_t num_rows, int64_t vocab) {
  constexpr int64_t kBlocks = 2048;  // 15 or more for each multiprocessor of today's devices
  constexpr int64_t kColumnsPerBlock = 4 * 1024;
  const int64_t wanted = num_rows > 0 ? kBlocks / num_rows : 1;
  const int64_t most = (vocab + kColumnsPerBlock - 1) / kColumnsPerBlock;
  const int64_t parts = wanted < most ? wanted : most;
  return parts > 1 ? parts : 1;
}

// On the current device, on `stream` (a cudaStream_t). Every pointer of the arguments is device
// memory. Returns 0, or the cudaError_t of the launch.
int launch_floor(const FloorArguments& arguments, void* stream);

}  // namespace autodeco::cuda
