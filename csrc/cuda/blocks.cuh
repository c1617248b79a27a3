// Reductions and scans over a warp or a block. All threads take part.
#pragma once

#include <cmath>

#include "gpu.cuh"

namespace autodeco::cuda {

constexpr unsigned kMaxWarps = 32;

__device__ __forceinline__ int num_warps() { return static_cast<int>(gpu::num_threads() / 32); }

template <typename T, typename Combine>
__device__ __forceinline__ T warp_reduce(T value, Combine combine) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value = combine(value, gpu::shuffle_xor(value, mask));
  return value;
}

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  return warp_reduce(value, [](T a, T b) { return a + b; });
}

template <typename T>
__device__ __forceinline__ T warp_inclusive_sum(T value) {
#pragma unroll
  for (unsigned distance = 1; distance < 32; distance *= 2) {
    const T below = gpu::shuffle_up(value, distance);
    if (gpu::lane_index() >= distance) value += below;
  }
  return value;
}

// Every thread gets the result. `scratch` holds kMaxWarps values in shared memory; nobody may be
// reading it any more.
template <typename T, typename Combine>
__device__ __forceinline__ T block_reduce(T value, T* scratch, T identity, Combine combine) {
  value = warp_reduce(value, combine);
  if (gpu::lane_index() == 0) scratch[gpu::warp_index()] = value;
  gpu::block_barrier();
  value = static_cast<int>(gpu::lane_index()) < num_warps() ? scratch[gpu::lane_index()] : identity;
  value = warp_reduce(value, combine);
  gpu::block_barrier();  // the scratch is free again
  return value;
}

template <typename T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  return block_reduce(value, scratch, T(), [](T a, T b) { return a + b; });
}

// NaN if one of them is.
__device__ __forceinline__ float block_max(float value, float* scratch) {
  return block_reduce(value, scratch, -INFINITY,
                      [](float a, float b) { return gpu::max_or_nan(a, b); });
}

// Sum of the values of this thread and those before it; *total is that of the block.
template <typename T>
__device__ __forceinline__ T block_inclusive_sum(T value, T* scratch, T* total) {
  const unsigned warp = gpu::warp_index();
  value = warp_inclusive_sum(value);
  if (gpu::lane_index() == 31) scratch[warp] = value;
  gpu::block_barrier();
  T before = 0;
  T sum = 0;
  for (unsigned other = 0; other < gpu::num_threads() / 32; ++other) {
    const T part = scratch[other];
    if (other < warp) before += part;
    sum += part;
  }
  *total = sum;
  gpu::block_barrier();  // the scratch is free again
  return value + before;
}

}  // namespace autodeco::cuda
