// The shared memory of a block, and how the blocks of a team work on one row together.
//
// Block 0 of a team leads: it decides, and its peers carry out commands on their part of the
// row. With one block a row the same code runs without peers.
#pragma once

#include "autodeco/last_kept.h"
#include "row.cuh"

namespace autodeco::cuda {

// Two blocks of 10 warps on a multiprocessor leave 96 registers a thread (at 80 two values spill)
// and 20 segments on the way from memory: 40 KB of a 16-bit row.
constexpr unsigned kThreads = 320;
// How many blocks the shared memory of a multiprocessor holds, which bounds the registers of each:
// two on the data centre chips, one where it has 100 KB.
#if defined(__CUDA_ARCH__) && \
    (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr unsigned kBlocksPerMultiprocessor = 1;
#else
constexpr unsigned kBlocksPerMultiprocessor = 2;
#endif
constexpr unsigned kListCapacity = 4096;  // candidates a block can hold
constexpr int kBins = 2048;
constexpr int kSubKeys = 32;  // values of the last radix digit

// What a kernel reports besides its result: how many tokens are kept, or what return_info asks for.
enum class Details { kNone, kCount, kInfo };

// What the parameters of a row ask for; the same in every block of a team.
struct Plan {
  float temperature;
  float top_p;
  float min_p;      // 0: off
  uint64_t top_k;   // 0: off
  bool one_token;   // the parameters alone leave one token
  bool filtered;    // neither one token nor all of them
  bool needs_sums;  // of weights
  bool needs_info;
  bool needs_count;  // of the finite logits
  float window;      // candidates are at most this far below the maximum, in logits
};

// What the leader knows after the streaming read.
struct Summary {
  RowStatus status;
  float max;
  int max_segment;  // the first that has it
  uint64_t mass;    // of the row; also left per segment in segment_mass
  uint64_t raw_mass;
};

enum class Action : uint32_t { kFinish, kHistogram, kSubHistogram, kWrite };

struct Command {
  Action action = Action::kFinish;
  uint32_t leading = 0;  // digits of the key that are decided
  int leading_shift = 0;
  int shift = 0;
  float row_max = 0.0f;
  float inverse_mass = 0.0f;  // of the row, in units of the largest weight
  LastKept last_kept = {};    // for kWrite
};

struct Level {  // one bin of a histogram
  uint32_t bin;
  uint32_t count_above;
  uint64_t mass_above;
  uint32_t count;
  uint32_t held;  // the floor, not the target, chose this bin
};

struct Head {
  uint64_t scratch64[kMaxWarps];
  uint32_t scratch32[kMaxWarps];
  float scratch_float[kMaxWarps];
  Plan plan;
  Summary summary;
  Command command;
  Level level;
  uint32_t running_max;     // order key of the largest logit seen by this block or told by a peer
  uint32_t narrowing;       // how often the candidate window was halved
  uint32_t num_candidates;  // that wanted a place; only kListCapacity of them got one
  uint32_t num_finite;
  uint32_t count_above;
  int found;
  uint32_t sub_count[kSubKeys];  // of the whole row
};

struct Histogram {
  uint32_t mass_low[kBins];
  uint32_t mass_high[kBins];
  uint32_t count[kBins];
};

// Arrays per segment belong to the leader. The candidate list and the histogram are not needed
// any more where `sub_counts` is used. Addresses are computed where they are used: kept as pointers
// they would fill the registers.
struct Memory {
  int segments;

  __device__ __forceinline__ explicit Memory(int vocab)
      : segments((vocab + kSegment - 1) / kSegment) {}

  __device__ __forceinline__ Head* head() const {
    return reinterpret_cast<Head*>(gpu::shared_memory());
  }
  // First words, then the running sum of masses.
  __device__ __forceinline__ uint64_t* segment_mass() const {
    return reinterpret_cast<uint64_t*>(gpu::shared_memory() + sizeof(Head));
  }
  __device__ __forceinline__ float* segment_max() const {
    return reinterpret_cast<float*>(segment_mass() + segments);
  }
  __device__ __forceinline__ float* segment_sum() const { return segment_max() + segments; }
  // At temperature 1.
  __device__ __forceinline__ float* segment_raw_sum() const { return segment_sum() + segments; }
  __device__ __forceinline__ uint32_t* segment_ties() const {
    return reinterpret_cast<uint32_t*>(segment_raw_sum() + segments);
  }
  __device__ __forceinline__ uint64_t* list() const {
    return segment_mass() + 3 * segments;  // 24 bytes a segment so far
  }
  __device__ __forceinline__ Histogram* histogram() const {
    return reinterpret_cast<Histogram*>(list() + kListCapacity);
  }
  // [segments, kSubKeys / 2], two counts of 16 bits a word.
  __device__ __forceinline__ uint32_t* sub_counts() const {
    return reinterpret_cast<uint32_t*>(list());
  }
};

static_assert(sizeof(Head) % 8 == 0);

// Bytes of dynamic shared memory for rows of `vocab` columns.
inline size_t shared_memory_bytes(int64_t vocab) {
  const size_t segments = static_cast<size_t>((vocab + kSegment - 1) / kSegment);
  const size_t list_and_histogram = kListCapacity * sizeof(uint64_t) + sizeof(Histogram);
  const size_t sub_counts = segments * kSubKeys * sizeof(uint16_t);
  return sizeof(Head) + segments * 24 +
         (list_and_histogram > sub_counts ? list_and_histogram : sub_counts);
}

// The blocks that share a row: one (kTeam is false), or a cluster of 2 to 8.
template <bool kTeam>
struct Team {
  unsigned size = 1;
  unsigned rank = 0;
  int first_segment;  // of those that this block owns
  int last_segment;

  __device__ __forceinline__ Team(unsigned team_size, int num_segments) {
    if constexpr (kTeam) {
      size = team_size;
      rank = gpu::cluster_rank();
    }
    const int share = (num_segments + static_cast<int>(size) - 1) / static_cast<int>(size);
    const int begin = static_cast<int>(rank) * share;
    first_segment = begin < num_segments ? begin : num_segments;
    last_segment = begin + share < num_segments ? begin + share : num_segments;
  }

  __device__ __forceinline__ bool leads() const { return !kTeam || rank == 0; }

  __device__ __forceinline__ static void barrier(
      gpu::Location location = gpu::Location::current()) {
    if constexpr (kTeam) {
      gpu::cluster_barrier(location);
    } else {
      gpu::block_barrier(location);
    }
  }

  template <typename T>
  __device__ __forceinline__ static T* in_leader(T* local) {
    if constexpr (kTeam) return gpu::cluster_peer(local, 0);
    return local;
  }

  // By the leader: after the barrier that follows, every block sees the command.
  __device__ __forceinline__ void announce(Head* head, const Command& command) const {
    if (gpu::thread_index() >= size) return;
    if constexpr (kTeam) {
      *gpu::cluster_peer(&head->command, gpu::thread_index()) = command;
    } else {
      head->command = command;
    }
  }
};

}  // namespace autodeco::cuda
