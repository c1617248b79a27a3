// The memory that a row needs, in a block and of a team.
#pragma once

#include "autodeco/last_kept.h"
#include "row.cuh"

namespace autodeco::cuda {

// Two blocks of 10 warps on a multiprocessor leave 96 registers a thread (at 80 two values spill)
// and 20 segments on the way from memory: 40 KB of a 16-bit row.
constexpr unsigned kThreads = 320;
// How many blocks the shared memory of a multiprocessor holds, which bounds the registers of each:
// two on the data centre chips, one where it has 100 KB. Teams without clusters have one.
#if defined(__CUDA_ARCH__) && \
    (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
template <bool kTeam>
constexpr unsigned kBlocksPerMultiprocessor = 1;
#else
template <bool kTeam>
constexpr unsigned kBlocksPerMultiprocessor = kTeam && !gpu::has_clusters() ? 1 : 2;
#endif
constexpr unsigned kMostBlocks = 8;       // of a team
constexpr unsigned kListCapacity = 3072;  // candidates a block can hold
// A radix digit, where tokens and masses are counted: in the list.
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
// The same where one of the two is: in the row. Keys have 12 + 4 or 12 + 12 + 8 bits.
constexpr int kLongDigitBits = 12;
constexpr int kLongBins = 1 << kLongDigitBits;
template <typename Element>
constexpr int kLastBits = Keys<Element>::kBits % kLongDigitBits;

// What a kernel reports besides its result: how many tokens are kept, or what return_info asks for.
enum class Details { kNone, kCount, kInfo };

// What the parameters of a row ask for; the same in every block of a team.
struct Plan {
  RowStatus status;   // of the temperature
  float temperature;  // 1 where it is invalid
  float top_p;
  float min_p;      // 0: off
  uint64_t top_k;   // 0: off
  bool one_token;   // the parameters alone leave one token
  bool filtered;    // neither one token nor all of them
  bool needs_sums;  // of weights
  bool needs_info;
  bool needs_count;  // of the finite logits
  bool needs_digit;  // the first digit is counted in the streaming read
  float window;      // where nothing better is known, candidates are this close to the maximum
};

// What the leader knows after the streaming read.
struct Summary {
  RowStatus status;
  float max;
  int max_segment;  // the first that has it
  uint64_t mass;    // of the row; also left per segment in segment_mass
  uint64_t raw_mass;
};

enum class Action : uint32_t { kFinish, kGather, kHistogram, kSubHistogram, kWrite };

// A digit of the keys that begin with `leading`.
struct Digit {
  uint32_t leading = 0;   // digits that are decided
  int leading_shift = 0;  // 0: no digit
  int shift = 0;

  __device__ __forceinline__ int bits() const { return leading_shift - shift; }
};

// What the last read of the row counts: 2^bits keys in every unit of 2^unit_shift segments.
struct LastDigit {
  int bits;
  int unit_shift;
};

enum class Measure : uint32_t { kCount, kMass, kFloor };

struct Command {
  Action action = Action::kFinish;
  Measure measure = Measure::kMass;  // kHistogram: what of the digit's tokens is added up
  Digit digit;
  Digit count_digit;  // kHistogram: another one, of which tokens and masses are counted
  // No token below matters: segments below are not read.
  float lowest = -kInfinity;
  // Tokens from here on become the candidate list (kGather, kHistogram).
  float threshold = kInfinity;
  bool gathers = false;  // kSubHistogram: what lies above the leading digits becomes the list
  float row_max = 0.0f;
  float inverse_mass = 0.0f;  // of the row, in units of the largest weight
  LastKept last_kept = {};    // for kWrite
};

struct Level {  // one bin of a histogram
  uint32_t bin;
  uint32_t count_above;
  uint64_t mass_above;
  uint32_t count;
  uint64_t mass;
  uint32_t held;  // the floor, not the target, chose this bin
};

struct CandidateList {
  bool complete;  // it holds every token from its threshold on
  unsigned size;
};

// For the shortest prefix of the order that reaches a target.
struct Search {
  uint64_t target;
  Measure measure;
  uint32_t floor_key;   // no token below it
  uint32_t next_floor;  // the same of the search that follows
  float lowest;         // no token below it matters
  CandidateList list;
  // The last read of the row makes the list of what lies above the last digit: another search
  // follows, inside the prefix that this one finds.
  bool gathers;
  int counted_shift;  // the digit that is counted already, by its leading_shift; 0: none
  // Only the last digit is left to find, of the tokens that have `leading`.
  bool at_last_digit;
  uint32_t leading;
};

// What the blocks of a team write for each other, besides the arrays of Memory.
struct alignas(8) TeamState {
  Command command;
  uint32_t num_candidates;  // that wanted a place; only kListCapacity of them got one
  uint32_t num_finite;
  uint32_t count_above;          // the digit that was counted last
  uint32_t marked[kMostBlocks];  // of kept_indices' second kernel: ids of every block
};

// What a block has for itself.
struct Head {
  uint64_t scratch64[kMaxWarps];
  uint64_t mass_above;  // the digit that was counted last
  uint32_t scratch32[kMaxWarps];
  float scratch_float[kMaxWarps];
  alignas(8) unsigned char leader[88];  // leader.cuh
  Plan plan;
  Summary summary;
  Search search;  // the last
  Level level;
  int found;
  uint32_t ties_of_found;  // where `found` is the unit of the last kept tie: the ties kept of it
};

__device__ __forceinline__ Head* head_of_block() {
  return reinterpret_cast<Head*>(gpu::shared_memory() + sizeof(TeamState));
}

struct Histogram {
  uint32_t mass_low[kBins];
  uint32_t mass_high[kBins];
  uint32_t count[kBins];
};

// Of masses, or of tokens as if each had a mass of 1.
struct LongHistogram {
  uint32_t mass_low[kLongBins];
  uint32_t mass_high[kLongBins];
};

// Where the arrays begin.
constexpr size_t kArraysOffset = sizeof(TeamState) + sizeof(Head);

// Of the arrays of Memory: a mass, the largest logits of the pieces, two sums.
constexpr size_t arrays_bytes(size_t segments) { return segments * (8 + kPieces * 4 + 2 * 4); }

constexpr size_t units_of(size_t segments, int unit_shift) {
  return (segments + (size_t{1} << unit_shift) - 1) >> unit_shift;
}

// A word for each key of the last digit, then a half of one for each in every unit.
constexpr size_t sub_counts_bytes(size_t segments, const LastDigit& digit) {
  return (size_t{1} << digit.bits) *
         (sizeof(uint32_t) + units_of(segments, digit.unit_shift) * sizeof(uint16_t));
}

// The histograms, and later the counts of the last digit: of 16-bit keys in every segment.
constexpr size_t histogram_bytes(size_t segments) {
  const size_t sub_counts = sub_counts_bytes(segments, {kLastBits<BFloat16>, 0});
  return sub_counts > sizeof(LongHistogram) ? sub_counts : sizeof(LongHistogram);
}

// With the smallest units for which the counts fit.
template <typename Element>
constexpr LastDigit last_digit_of(size_t segments) {
  LastDigit digit = {kLastBits<Element>, 0};
  if constexpr (Keys<Element>::kBits > 16) {
    while (sub_counts_bytes(segments, digit) > histogram_bytes(segments)) ++digit.unit_shift;
  }
  return digit;
}

// Bytes of dynamic shared memory: the histograms follow the candidate list.
constexpr size_t shared_memory_bytes_of(size_t segments) {
  return kArraysOffset + arrays_bytes(segments) + kListCapacity * sizeof(uint64_t) +
         histogram_bytes(segments);
}

static_assert(sizeof(TeamState) % 8 == 0 && sizeof(Head) % 8 == 0);
// Two blocks on a multiprocessor of sm_80 (164 KB, 1 KB of each block's is reserved) up to 790,528
// columns, and no more than sm_86, sm_89 and sm_120 give a block at 2^20.
static_assert(2 * (shared_memory_bytes_of(790528 / kSegment) + 1024) <= 164 * 1024);
static_assert(shared_memory_bytes_of(kMaxSegments) <= 99 * 1024);
static_assert(sizeof(Histogram) <= sizeof(LongHistogram));
static_assert(sizeof(Histogram) <= kListCapacity * sizeof(uint64_t));
// Counts of a unit are 16 bits.
static_assert((kSegment << last_digit_of<float>(kMaxSegments).unit_shift) < (1 << 16));

constexpr size_t shared_memory_bytes(int64_t vocab) {
  return shared_memory_bytes_of(static_cast<size_t>((vocab + kSegment - 1) / kSegment));
}

// What lies where. A block has all of it in shared memory; where there are no clusters, the blocks
// of a team have it once more in global memory and use that part of it which they share: everything
// but the head and the histograms of each. With clusters the part that is shared is the leader's.
//
// After a last read with larger units, `segment_mass` and `segment_ties` are of units. The
// histograms are not needed any more where `sub_counts` is used. Addresses are computed where they
// are used: kept as pointers they would fill the registers.
struct Memory {
  int segments;
  char* team_memory;  // the shared memory of the block, or global memory

  __device__ __forceinline__ Memory(int vocab, char* memory_of_team)
      : segments((vocab + kSegment - 1) / kSegment), team_memory(memory_of_team) {}

  // The compiler knows more of the address of shared memory than of one it finds there.
  __device__ __forceinline__ char* shared_by_team() const {
    return gpu::has_clusters() ? gpu::shared_memory() : team_memory;
  }
  __device__ __forceinline__ TeamState* state() const {
    return reinterpret_cast<TeamState*>(shared_by_team());
  }
  __device__ __forceinline__ Head* head() const { return head_of_block(); }
  // First words, then the running sum of masses.
  __device__ __forceinline__ uint64_t* segment_mass() const {
    return reinterpret_cast<uint64_t*>(shared_by_team() + kArraysOffset);
  }
  // [segments, kPieces]
  __device__ __forceinline__ float* piece_max() const {
    return reinterpret_cast<float*>(segment_mass() + segments);
  }
  __device__ __forceinline__ float segment_max(int segment) const {
    const float* pieces = piece_max() + segment * kPieces;
    float max = pieces[0];
#pragma unroll
    for (int i = 1; i < kPieces; ++i) max = gpu::max_or_nan(max, pieces[i]);
    return max;
  }
  __device__ __forceinline__ float* segment_sum() const { return piece_max() + segments * kPieces; }
  // At temperature 1.
  __device__ __forceinline__ float* segment_raw_sum() const { return segment_sum() + segments; }
  // Tokens with one key, where the maxima are not needed any more.
  __device__ __forceinline__ uint32_t* segment_ties() const {
    return reinterpret_cast<uint32_t*>(piece_max());
  }
  __device__ __forceinline__ uint64_t* list() const {
    return reinterpret_cast<uint64_t*>(shared_by_team() + list_offset());
  }
  // Of the block.
  __device__ __forceinline__ Histogram* histogram() const {
    return reinterpret_cast<Histogram*>(gpu::shared_memory() + histogram_offset());
  }
  // The same in the part that the team shares.
  template <typename T>
  __device__ __forceinline__ T* of_team(T* in_block) const {
    return reinterpret_cast<T*>(shared_by_team() +
                                (reinterpret_cast<char*>(in_block) - gpu::shared_memory()));
  }
  __device__ __forceinline__ LongHistogram* long_histogram() const {
    return reinterpret_cast<LongHistogram*>(gpu::shared_memory() + histogram_offset());
  }
  // In place of the list.
  __device__ __forceinline__ Histogram* count_histogram() const {
    return reinterpret_cast<Histogram*>(gpu::shared_memory() + list_offset());
  }
  template <typename Element>
  __device__ __forceinline__ LastDigit last_digit() const {
    return last_digit_of<Element>(static_cast<size_t>(segments));
  }
  // [keys of the last digit], of the whole row.
  __device__ __forceinline__ uint32_t* sub_totals() const {
    return reinterpret_cast<uint32_t*>(shared_by_team() + histogram_offset());
  }
  // [units, keys / 2], two counts of 16 bits a word.
  __device__ __forceinline__ uint32_t* sub_counts(const LastDigit& digit) const {
    return sub_totals() + (1 << digit.bits);
  }

 private:
  __device__ __forceinline__ size_t list_offset() const {
    return kArraysOffset + arrays_bytes(static_cast<size_t>(segments));
  }
  __device__ __forceinline__ size_t histogram_offset() const {
    return list_offset() + kListCapacity * sizeof(uint64_t);
  }
};

}  // namespace autodeco::cuda
