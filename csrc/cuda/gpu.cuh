// The thin layer kernels are written against. nvcc sees CUDA; a C++ compiler sees the emulation of
// csrc/tests/emulation, in which each of these functions has a twin.
#pragma once

#if !defined(__CUDACC__)
#include "emulation/gpu_functions.h"
#else
#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

// A function that is called, not copied to each of its callers: for what is not worth a copy, which
// costs machine code and time to compile. Arguments are a few numbers or addresses of shared
// memory, never of what the caller keeps: that would lie in local memory, and what the caller holds
// beyond some registers is spilled.
#define AUTODECO_CALLED inline __noinline__

namespace autodeco::gpu {

using std::uint16_t;

// Where a barrier stands in the source. Only the emulation wants to know.
struct Location {
  __device__ static constexpr Location current() { return {}; }
};

struct Words4 {
  uint32_t word[4];
};

__device__ __forceinline__ unsigned thread_index() { return threadIdx.x; }
__device__ __forceinline__ unsigned num_threads() { return blockDim.x; }
// Tells the compiler: divisions by a number it knows are cheap.
template <unsigned kThreads>
__device__ __forceinline__ void promise_num_threads() {
  __builtin_assume(blockDim.x == kThreads);
}
__device__ __forceinline__ unsigned block_index() { return blockIdx.x; }
__device__ __forceinline__ unsigned lane_index() { return threadIdx.x % 32; }
__device__ __forceinline__ unsigned warp_index() { return threadIdx.x / 32; }

// The dynamic shared memory of the block.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(128) char bytes[];
  return bytes;
}

__device__ __forceinline__ void block_barrier(Location = {}) { __syncthreads(); }

// Whether the blocks of a team are a cluster. Where not, they are launched together, so that one
// may wait for another.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ constexpr bool has_clusters() { return true; }
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ unsigned cluster_size() {
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

__device__ __forceinline__ void cluster_barrier(Location = {}) {
  // Not `.aligned`: nothing promises that a warp has reconverged after a divergent branch.
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}

// The same variable in the shared memory of another block of the cluster.
template <typename T>
__device__ __forceinline__ T* cluster_peer(T* local, unsigned rank) {
  T* remote;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(remote) : "l"(local), "r"(rank));
  return remote;
}
#else
__device__ constexpr bool has_clusters() { return false; }
__device__ __forceinline__ unsigned cluster_rank() {
  __trap();
  return 0;
}
__device__ __forceinline__ unsigned cluster_size() {
  __trap();
  return 1;
}
__device__ __forceinline__ void cluster_barrier(Location = {}) { __trap(); }
template <typename T>
__device__ __forceinline__ T* cluster_peer(T* local, unsigned) {
  __trap();
  return local;
}
#endif

// Between the blocks of a launch, in global memory. What this thread knows is seen by whoever reads
// the word.
__device__ __forceinline__ void publish(uint32_t* word, uint32_t value, Location = {}) {
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
__device__ __forceinline__ uint32_t read_published(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}
// In a loop that waits for another block.
__device__ __forceinline__ void pause(Location = {}) {}

// What the block wrote before its last barrier is seen by a thread that waits for the count.
// Returns the count before.
__device__ __forceinline__ uint32_t arrive(uint32_t* count, Location = {}) {
  uint32_t before;
  asm volatile("atom.add.release.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(count) : "memory");
  return before;
}
// Until the count is `wanted` or more.
__device__ __forceinline__ void wait_for(const uint32_t* count, uint32_t wanted, Location = {}) {
  while (read_published(count) < wanted) pause();
}

constexpr unsigned kWholeWarp = 0xffffffffu;

template <typename T>
__device__ __forceinline__ T shuffle(T value, unsigned lane) {
  return __shfl_sync(kWholeWarp, value, static_cast<int>(lane));
}
template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kWholeWarp, value, mask);
}
// The value `distance` lanes below; a lane that has none keeps its own.
template <typename T>
__device__ __forceinline__ T shuffle_up(T value, unsigned distance) {
  return __shfl_up_sync(kWholeWarp, value, distance);
}
__device__ __forceinline__ unsigned ballot(bool condition) {
  return __ballot_sync(kWholeWarp, condition);
}

// Memory of a block or of a team. Returns the value before.
__device__ __forceinline__ uint32_t atomic_add(uint32_t* address, uint32_t value) {
  return atomicAdd(address, value);
}

// The same address. The compiler cannot see how it was computed, so it keeps the address alone in
// registers and not its parts as well.
template <typename T>
__device__ __forceinline__ const T* opaque(const T* address) {
  asm("" : "+l"(address));
  return address;
}

// Global memory that is read once: 16 bytes, or one element.
__device__ __forceinline__ Words4 load_words4(const void* address) {
  const uint4 words = __ldcs(static_cast<const uint4*>(address));
  return {{words.x, words.y, words.z, words.w}};
}
template <typename T>
__device__ __forceinline__ T load(const T* address) {
  return __ldcs(address);
}

// 2^x, relative error below 2^-22; 2^0 is 1.
__device__ __forceinline__ float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// The larger number, NaN if one of them is.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
__device__ __forceinline__ uint64_t multiply_high(uint64_t a, uint64_t b) {
  return __umul64hi(a, b);
}
__device__ __forceinline__ uint32_t count_bits(uint32_t word) {
  return static_cast<uint32_t>(__popc(word));
}
__device__ __forceinline__ float float_of_half(uint16_t bits) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
  return result;
}
// The nearest half; infinity beyond the largest.
__device__ __forceinline__ uint16_t half_of_float(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// Where kernels run: `stream` is a cudaStream_t.
struct Launch {
  int64_t blocks = 1;
  unsigned threads = 32;
  size_t shared_bytes = 0;
  size_t most_shared_bytes = 0;  // of any launch of the kernel
  unsigned cluster = 1;
  bool together = false;  // all blocks are resident at once, or the launch fails
  void* stream = nullptr;
};

// Lets a kernel have this much dynamic shared memory on the current device. A thread asks the
// driver once for each device, so `bytes` must be the same number in every call.
template <auto kKernel>
cudaError_t allow_shared_memory(size_t bytes) {
  // A bit for each device that knows. For each thread of the host, since <atomic> would be a second
  // of every file's compilation; that several of them tell it does no harm.
  thread_local uint64_t known = 0;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;  // others are told every time
  if ((known & bit) != 0) return cudaSuccess;
  error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes));
  if (error == cudaSuccess) known |= bit;
  return error;
}

// Returns cudaSuccess (0) or the error of the launch.
template <auto kKernel, typename Arguments>
int launch(const Launch& where, const Arguments& arguments) {
  if (where.blocks > std::numeric_limits<int32_t>::max()) return cudaErrorInvalidConfiguration;
  cudaError_t error = cudaSuccess;
  constexpr size_t kSharedWithoutAsking = 48 * 1024;
  if (where.shared_bytes > kSharedWithoutAsking) {
    error = allow_shared_memory<kKernel>(where.most_shared_bytes);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();  // a later launch must not find this error
    return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(where.blocks));
  config.blockDim = dim3(where.threads);
  config.dynamicSmemBytes = where.shared_bytes;
  config.stream = static_cast<cudaStream_t>(where.stream);
  cudaLaunchAttribute attribute = {};
  if (where.cluster > 1) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = where.cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  } else if (where.together) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  config.attrs = &attribute;
  config.numAttrs = where.cluster > 1 || where.together ? 1 : 0;
  error = cudaLaunchKernelEx(&config, kKernel, arguments);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace autodeco::gpu
#endif
