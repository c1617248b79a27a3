// The functions of csrc/cuda/gpu.cuh on the emulated device.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "device.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define AUTODECO_CALLED inline __attribute__((noinline))

namespace autodeco::gpu {

using emulation::Location;

struct Words4 {
  uint32_t word[4];
};

AUTODECO_EMULATOR unsigned thread_index() { return emulation::device.current->index; }
AUTODECO_EMULATOR unsigned num_threads() { return emulation::device.block_threads; }
template <unsigned kThreads>
void promise_num_threads() {}  // kernels run with fewer under ThreadSanitizer
AUTODECO_EMULATOR unsigned block_index() { return emulation::device.current->block->index; }
AUTODECO_EMULATOR unsigned lane_index() { return emulation::device.current->index % 32; }
AUTODECO_EMULATOR unsigned warp_index() { return emulation::device.current->index / 32; }
AUTODECO_EMULATOR unsigned cluster_rank() { return emulation::device.current->block->rank; }
AUTODECO_EMULATOR unsigned cluster_size() { return emulation::device.cluster_size; }
AUTODECO_EMULATOR char* shared_memory() { return emulation::device.current->block->shared; }

AUTODECO_EMULATOR void block_barrier(Location location = Location::current()) {
  emulation::wait(emulation::device.current->block->barrier, location);
}
// A launch in which all blocks are resident together is one cluster to the emulation.
AUTODECO_EMULATOR bool has_clusters() { return emulation::device.has_clusters; }
AUTODECO_EMULATOR void cluster_barrier(Location location = Location::current()) {
  emulation::wait(*emulation::device.current->block->cluster_barrier, location, true);
}

AUTODECO_EMULATOR char* peer_memory(unsigned rank) {
  return emulation::device.current->block->peers[rank]->shared;
}
template <typename T>
T* cluster_peer(T* local, unsigned rank) {
  const auto offset =
      reinterpret_cast<char*>(const_cast<std::remove_const_t<T>*>(local)) - shared_memory();
  return reinterpret_cast<T*>(peer_memory(rank) + offset);
}

template <typename T>
AUTODECO_EMULATOR uint64_t to_word(T value) {
  uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof value);
  return word;
}
template <typename T>
AUTODECO_EMULATOR T from_word(uint64_t word) {
  T value;
  __builtin_memcpy(&value, &word, sizeof value);
  return value;
}

template <typename T>
AUTODECO_EMULATOR T shuffle(T value, unsigned lane, Location at = Location::current()) {
  return from_word<T>(emulation::exchange(to_word(value), at.file_name(), at.line())[lane]);
}
template <typename T>
AUTODECO_EMULATOR T shuffle_xor(T value, int mask, Location at = Location::current()) {
  const unsigned lane = lane_index() ^ static_cast<unsigned>(mask);
  return from_word<T>(emulation::exchange(to_word(value), at.file_name(), at.line())[lane]);
}
template <typename T>
AUTODECO_EMULATOR T shuffle_up(T value, unsigned distance, Location at = Location::current()) {
  const unsigned me = lane_index();
  const unsigned lane = me >= distance ? me - distance : me;
  return from_word<T>(emulation::exchange(to_word(value), at.file_name(), at.line())[lane]);
}
AUTODECO_EMULATOR unsigned ballot(bool condition, Location at = Location::current()) {
  const uint64_t* votes = emulation::exchange(condition, at.file_name(), at.line());
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; ++lane) result |= (votes[lane] != 0 ? 1u : 0u) << lane;
  return result;
}

// Relaxed, as on the device: an atomic operation orders nothing else.
inline uint32_t atomic_add(uint32_t* address, uint32_t value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

// ThreadSanitizer knows what these order.
inline uint32_t arrive(uint32_t* count, Location at = Location::current()) {
  if (emulation::is_removed(at, true)) {
    return __atomic_load_n(count, __ATOMIC_RELAXED);
  }
  return __atomic_fetch_add(count, 1u, __ATOMIC_RELEASE);
}
inline void wait_for(const uint32_t* count, uint32_t wanted, Location at = Location::current()) {
  if (emulation::is_removed(at, true)) return;
  while (__atomic_load_n(count, __ATOMIC_ACQUIRE) < wanted) emulation::yield(at);
}
inline void publish(uint32_t* word, uint32_t value, Location at = Location::current()) {
  if (!emulation::is_removed(at, true)) __atomic_store_n(word, value, __ATOMIC_RELEASE);
}
inline uint32_t read_published(const uint32_t* word) {
  return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}
inline void pause(Location at = Location::current()) { emulation::yield(at); }

template <typename T>
const T* opaque(const T* address) {
  return address;
}

AUTODECO_EMULATOR void count_bytes(uint64_t bytes) { emulation::device.bytes_loaded += bytes; }

inline Words4 load_words4(const void* address) {
  count_bytes(sizeof(Words4));
  if (reinterpret_cast<uintptr_t>(address) % sizeof(Words4) != 0) {
    emulation::fail("misaligned 16-byte load", "", 0);
  }
  return *static_cast<const Words4*>(address);
}
template <typename T>
T load(const T* address) {
  count_bytes(sizeof(T));
  return *address;
}

inline float exp2_approximate(float x) { return std::exp2(x); }
inline float max_or_nan(float a, float b) {
  if (a != a || b != b) return std::bit_cast<float>(0x7fffffffu);
  return a > b ? a : b;
}
inline uint64_t multiply_high(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline uint32_t count_bits(uint32_t word) { return static_cast<uint32_t>(std::popcount(word)); }
inline float float_of_half(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const bool finite = magnitude < 0x7c00u;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  return std::bit_cast<float>((finite ? std::bit_cast<uint32_t>(scaled) : special) | sign);
}
inline uint16_t half_of_float(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7fffu;
  if (magnitude < 0x1p-14f) {
    return sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f));
  }
  if (magnitude >= 65520.0f) return sign | 0x7c00u;
  const uint32_t rebased = (bits & 0x7fffffffu) - (112u << 23);
  return sign | (rebased + 0xfffu + (rebased >> 13 & 1u)) >> 13;
}

struct Launch {
  int64_t blocks = 1;
  unsigned threads = 32;
  size_t shared_bytes = 0;
  unsigned cluster = 1;
  bool together = false;
  bool has_clusters = true;  // the code is made for them
  void* stream = nullptr;
};

// What goes wrong in an emulated kernel is thrown, not returned.
template <typename Arguments>
int launch(void (*kernel)(Arguments), const Launch& where, const Arguments& arguments) {
  struct Call {
    void (*kernel)(Arguments);
    const Arguments* arguments;
  } call = {kernel, &arguments};
  const unsigned blocks = static_cast<unsigned>(where.blocks);
  emulation::device.has_clusters = where.has_clusters;
  emulation::run_grid(
      {blocks, where.threads, where.shared_bytes, where.together ? blocks : where.cluster},
      [](void* context) {
        Call& call = *static_cast<Call*>(context);
        call.kernel(*call.arguments);
      },
      &call);
  return 0;
}

}  // namespace autodeco::gpu
