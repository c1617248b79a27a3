// Runs CUDA kernels on the CPU to test their logic: a CUDA thread is a fiber, the blocks of a
// cluster, or of a launch that asks for it, are resident together, and threads run until they meet
// in a barrier or a warp operation, or wait for other blocks.
//
// A missing barrier gives a wrong answer under one of the thread orders, and a race report under
// -fsanitize=thread. Shared memory has exactly the size of the launch and starts as NaN, so that
// AddressSanitizer and the tests see overruns and reads of what nobody wrote. Not modelled: time,
// bank conflicts, weak memory order, the bits of approximate instructions.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <source_location>
#include <stdexcept>
#include <vector>

#include "fiber.h"

namespace autodeco::emulation {

using Location = std::source_location;

// kLockstep lets all threads take turns, as the warps of a GPU do; the others let one warp run on.
enum class Order { kForward, kReverse, kRandom, kLockstep };

struct Thread;

// A rendezvous. Two sync words alternate, so that a thread that leaves late does not also acquire
// what the next phase released.
struct Meeting {
  unsigned arrived = 0;
  unsigned expected = 0;
  unsigned phase = 0;
  Thread* first = nullptr;
  Thread* last = nullptr;
  const char* file = nullptr;
  unsigned line = 0;
  bool in_any_place = false;  // blocks of a cluster may wait at different lines
  char sync[2] = {};
};

struct Warp {
  Meeting meeting;
  uint64_t input[32] = {};
  uint64_t result[32] = {};
};

struct Block {
  unsigned index = 0;
  unsigned rank = 0;  // in its cluster
  unsigned running = 0;
  char* shared = nullptr;
  size_t shared_bytes = 0;
  Meeting barrier;
  Meeting* cluster_barrier = nullptr;
  Block* const* peers = nullptr;
  Warp warps[32];
  char exit_sync = 0;
};

struct Thread : Fiber {
  unsigned index = 0;
  Block* block = nullptr;
  Thread* next = nullptr;
  const char* file = "";
  unsigned line = 0;
};

struct BarrierSite {
  const char* file;
  unsigned line;
  bool between_blocks;
  bool met_with_clusters;
  bool met_without_clusters;
};

constexpr int kMaxSites = 256;
constexpr unsigned kMaxThreads = 16 * 1024;

// What threads touch while they switch is plain arrays: library containers would be instrumented.
struct Device {
  Order order = Order::kForward;
  uint64_t random = 1;
  uint64_t bytes_loaded = 0;  // of global memory, through gpu.cuh's load functions
  BarrierSite sites[kMaxSites];
  int num_sites = 0;
  const char* removed_file = "";  // the barrier of this place does nothing
  unsigned removed_line = 0;
  bool has_clusters = true;

  Fiber main;
  Thread* current = nullptr;
  Thread threads[kMaxThreads];
  Thread* ready[kMaxThreads];
  unsigned num_ready = 0;
  unsigned alive = 0;
  unsigned yields = 0;  // since a thread last went on
  unsigned block_threads = 0;
  unsigned cluster_size = 0;
  char error[300] = {};
  void (*body)(void*) = nullptr;
  void* context = nullptr;
  char start_sync = 0;
  char done_sync = 0;
};

inline Device device;

AUTODECO_EMULATOR uint64_t next_random() {
  device.random ^= device.random << 13;
  device.random ^= device.random >> 7;
  device.random ^= device.random << 17;
  return device.random;
}

// Runs the newest ready thread, so that a warp goes on until it meets a block barrier; in lockstep
// the oldest.
AUTODECO_EMULATOR void run_next(Fiber& from) {
  Fiber* to = &device.main;
  if (device.num_ready != 0) {
    const unsigned last = --device.num_ready;
    if (device.order == Order::kRandom) {
      const unsigned chosen = static_cast<unsigned>(next_random() % (last + 1));
      Thread* const swapped = device.ready[chosen];
      device.ready[chosen] = device.ready[last];
      device.ready[last] = swapped;
    }
    device.current = device.ready[last];
    if (device.order == Order::kLockstep) {
      device.current = device.ready[0];
      for (unsigned i = 0; i < last; ++i) device.ready[i] = device.ready[i + 1];
    }
    to = device.current;
  }
  if (to != &from) switch_fiber(from, *to);
}

AUTODECO_EMULATOR void fail(const char* what, const char* file, unsigned line) {
  std::snprintf(device.error, sizeof device.error, "emulation: %s at %s:%u, block %u thread %u",
                what, file, line, device.current->block->index, device.current->index);
  switch_fiber(*device.current, device.main);
  std::abort();
}

// Registers the calling thread; true in the one that completes the meeting, before any is released.
AUTODECO_EMULATOR bool arrive(Meeting& meeting, const char* file, unsigned line,
                              bool orders_memory) {
  Thread* me = device.current;
  device.yields = 0;
  me->file = file;
  me->line = line;
  me->next = nullptr;
  if (meeting.arrived != 0 && meeting.line != line && !meeting.in_any_place) {
    fail("threads meet in different places", file, line);
  }
  meeting.file = file;
  meeting.line = line;
  if (orders_memory) release(&meeting.sync[meeting.phase & 1]);
  if (meeting.last != nullptr) {
    meeting.last->next = me;
  } else {
    meeting.first = me;
  }
  meeting.last = me;
  return ++meeting.arrived == meeting.expected;
}

// The thread that arrived first is to run first, or last in the reverse order. The newest in
// `ready` runs first, or the oldest in lockstep.
AUTODECO_EMULATOR void release_waiting(Meeting& meeting) {
  const bool first_goes_lowest =
      device.order == Order::kReverse || device.order == Order::kLockstep;
  unsigned slot = device.num_ready + (first_goes_lowest ? 0 : meeting.arrived - 1);
  const int step = first_goes_lowest ? 1 : -1;
  for (Thread* thread = meeting.first; thread != nullptr; thread = thread->next) {
    device.ready[slot] = thread;
    slot += step;
  }
  device.num_ready += meeting.arrived;
  meeting.first = meeting.last = nullptr;
  meeting.arrived = 0;
  ++meeting.phase;
}

AUTODECO_EMULATOR void leave(Meeting& meeting, bool orders_memory, bool completes) {
  const unsigned phase = meeting.phase & 1;
  Thread* me = device.current;
  if (completes) release_waiting(meeting);
  run_next(*me);
  if (orders_memory) acquire(&meeting.sync[phase]);
}

// Lets every other thread that is ready run first; fails if none of them changes anything any more.
AUTODECO_EMULATOR void yield(const Location& location) {
  constexpr unsigned kMostYields = 100000;
  if (++device.yields > kMostYields) {
    fail("a thread waits for ever", location.file_name(), location.line());
  }
  if (device.order == Order::kForward || device.order == Order::kReverse) {  // the last runs first
    for (unsigned i = device.num_ready; i > 0; --i) device.ready[i] = device.ready[i - 1];
    device.ready[0] = device.current;
  } else {
    device.ready[device.num_ready] = device.current;
  }
  ++device.num_ready;
  run_next(*device.current);
}

AUTODECO_EMULATOR bool is_removed(const Location& location, bool between_blocks) {
  const char* file = location.file_name();
  const unsigned line = location.line();
  int site = 0;
  while (site < device.num_sites &&
         (device.sites[site].file != file || device.sites[site].line != line)) {
    ++site;
  }
  if (site == device.num_sites && site < kMaxSites) {
    device.sites[device.num_sites++] = {file, line, false, false, false};
  }
  if (site < kMaxSites) {
    device.sites[site].between_blocks |= between_blocks;
    device.sites[site].met_with_clusters |= device.has_clusters;
    device.sites[site].met_without_clusters |= !device.has_clusters;
  }
  return line == device.removed_line && std::strcmp(file, device.removed_file) == 0;
}

AUTODECO_EMULATOR void wait(Meeting& meeting, const Location& location,
                            bool between_blocks = false) {
  if (is_removed(location, between_blocks)) return;
  leave(meeting, true, arrive(meeting, location.file_name(), location.line(), true));
}

// Everyone's value, by lane. All 32 lanes take part.
AUTODECO_EMULATOR const uint64_t* exchange(uint64_t value, const char* file, unsigned line) {
  Warp& warp = device.current->block->warps[device.current->index / 32];
  warp.input[device.current->index % 32] = value;
  const bool completes = arrive(warp.meeting, file, line, false);
  if (completes) {
    for (int lane = 0; lane < 32; ++lane) warp.result[lane] = warp.input[lane];
  }
  leave(warp.meeting, false, completes);
  return warp.result;
}

AUTODECO_EMULATOR void run_thread() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  Thread* me = device.current;
  acquire(&device.start_sync);
  device.body(device.context);
  device.yields = 0;
  release(&me->block->exit_sync);
  if (--me->block->running == 0) {  // peers must not use the memory of a block that has left
    acquire(&me->block->exit_sync);
    std::memset(me->block->shared, 0xff, me->block->shared_bytes);
  }
  release(&device.done_sync);
  me->finished = true;
  --device.alive;
  run_next(*me);
  std::abort();
}

struct Launch {
  unsigned blocks = 1;
  unsigned threads = 32;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // or all blocks, if they are resident together
};

// The memory of blocks lives to the end of a launch: reuse would make blocks look ordered.
struct ClusterMemory {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<Block*> peers;
  Meeting barrier;
  ~ClusterMemory() {
    for (auto& block : blocks) std::free(block->shared);
  }
};

inline std::unique_ptr<ClusterMemory> make_cluster(const Launch& launch, unsigned first_block) {
  auto cluster = std::make_unique<ClusterMemory>();
  cluster->barrier.expected = launch.cluster * launch.threads;
  cluster->barrier.in_any_place = true;
  for (unsigned rank = 0; rank < launch.cluster; ++rank) {
    auto block = std::make_unique<Block>();
    block->index = first_block + rank;
    block->rank = rank;
    block->running = block->barrier.expected = launch.threads;
    block->shared_bytes = launch.shared_bytes;
    block->cluster_barrier = &cluster->barrier;
    for (Warp& warp : block->warps) warp.meeting.expected = 32;
    void* shared = nullptr;
    // An exact allocation, so that the byte after the last is an error.
    if (posix_memalign(&shared, 128, launch.shared_bytes) != 0) throw std::bad_alloc();
    block->shared = static_cast<char*>(shared);
    std::memset(shared, 0xff, launch.shared_bytes);
    cluster->peers.push_back(block.get());
    cluster->blocks.push_back(std::move(block));
  }
  for (auto& block : cluster->blocks) block->peers = cluster->peers.data();
  return cluster;
}

inline void run_cluster(const Launch& launch, ClusterMemory& cluster) {
  const unsigned count = launch.cluster * launch.threads;
  if (count > kMaxThreads) throw std::runtime_error("emulation: cluster too large");
  static char* kept_stacks = nullptr;
  if (!kFreshStacks && kept_stacks == nullptr) kept_stacks = map_stacks(kMaxThreads);
  char* stacks = kFreshStacks ? map_stacks(count) : kept_stacks;
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = device.threads[i];
    thread.index = i % launch.threads;
    thread.block = cluster.peers[i / launch.threads];
    thread.stack = stacks + i * kStackBytes;
    prepare_fiber(thread, &run_thread);
    const bool low_goes_lowest =
        device.order == Order::kReverse || device.order == Order::kLockstep;
    device.ready[low_goes_lowest ? i : count - 1 - i] = &thread;
  }
  device.num_ready = device.alive = count;
  run_next(device.main);
  for (unsigned i = 0; i < count && device.alive != 0 && device.error[0] == 0; ++i) {
    const Thread& thread = device.threads[i];
    if (thread.finished) continue;
    std::snprintf(device.error, sizeof device.error,
                  "emulation: deadlock: thread %u of block %u waits at %s:%u", thread.index,
                  thread.block->index, thread.file, thread.line);
  }
  if (kFreshStacks) munmap(stacks, count * kStackBytes);
}

inline void run_grid(const Launch& launch, void (*body)(void*), void* context) {
  if (launch.blocks % launch.cluster != 0 || launch.threads % 32 != 0 || launch.threads > 1024) {
    throw std::runtime_error("emulation: bad launch configuration");
  }
  device.body = body;
  device.context = context;
  device.block_threads = launch.threads;
  device.cluster_size = launch.cluster;
  device.error[0] = 0;
#if defined(__SANITIZE_THREAD__)
  device.main.race_detector = __tsan_get_current_fiber();
#endif
  release(&device.start_sync);
  std::vector<unsigned> clusters(launch.blocks / launch.cluster);
  for (unsigned i = 0; i < clusters.size(); ++i) clusters[i] = i * launch.cluster;
  if (device.order == Order::kReverse) std::reverse(clusters.begin(), clusters.end());
  if (device.order == Order::kRandom) {
    std::shuffle(clusters.begin(), clusters.end(), std::minstd_rand(device.random & 0xffff));
  }
  std::vector<std::unique_ptr<ClusterMemory>> memory;
  for (const unsigned first_block : clusters) {
    memory.push_back(make_cluster(launch, first_block));
    run_cluster(launch, *memory.back());
    if (device.error[0] != 0) break;
  }
  acquire(&device.done_sync);
  if (device.error[0] != 0) throw std::runtime_error(device.error);
}

}  // namespace autodeco::emulation
