// The shared memory of a block that computes the training losses of one row, and what the steps of
// the kernel leave there for each other. One block a row: a training batch has rows enough.
#pragma once

#include "autodeco/autodeco_loss.h"
#include "autodeco/soft_top_p.h"
#include "row_memory.cuh"

namespace autodeco::cuda {

// Two blocks of 8 warps on a multiprocessor leave 128 registers a thread; at 96 values spill.
constexpr unsigned kLossThreads = 256;
constexpr unsigned kLossBins = 2048;
// Natural logarithms that the bins span below the maximum: of 2^20 tokens below, all together weigh
// less than 0.003 of the first.
constexpr float kLossWindow = 20.0f;
// Tokens that are more probable are taken one by one.
constexpr double kHeavy = 0x1p-11;
constexpr unsigned kHeavyCapacity = 2048;  // 1 / kHeavy
// So are, from the cut on, those that decay by more than this from one to the next, until the tail
// has decayed by e^-kDecays: those are fewer than 800, but for those that share a bin with the cut.
constexpr double kLightDecay = 0x1p-6;
constexpr double kDecays = 12.0;
constexpr unsigned kGatherCapacity = 3074;
// A piece is what sixteen lanes of a segment hold of one vector: 128 columns in a row.
constexpr int kLossPieces = 8;
constexpr int kLossPieceLanes = 16;

// Magnitudes of bfloat16 logits that are counted value by value: 2^-32 to 2^8, and zero.
constexpr uint32_t kFirstMagnitude = (127u - 32) << 7;
constexpr uint32_t kLastMagnitude = (127u + 8) << 7;
constexpr int kMagnitudes = static_cast<int>(kLastMagnitude - kFirstMagnitude);
constexpr int kLossValues = 2 * kMagnitudes + 1;

// Of the tokens of a bin: how many, and sums of their positions in it and of the squares, in units
// of 2^-20 of a bin: 2^20 squares fit. 64-bit sums are two words.
constexpr int kPositionBits = 20;
struct LossBins {
  uint32_t count[kLossBins];
  uint32_t position_low[kLossBins];
  uint32_t position_high[kLossBins];
  uint32_t square_low[kLossBins];
  uint32_t square_high[kLossBins];
};

// Ranges of order keys inside a bin: how many tokens, and sums of mass and of mass times distance
// in the integers of CrossingToken.
constexpr unsigned kSubBins = 1024;
struct LossSubBins {
  uint32_t count[kSubBins];
  uint32_t mass_low[kSubBins];
  uint32_t mass_high[kSubBins];
  uint32_t moment_low[kSubBins];
  uint32_t moment_high[kSubBins];
};

// The bin in which the running mass crosses P, and the range of order keys in it, as far as known.
struct Crossing {
  int bin;              // kNoCrossing: none whose tokens must be told apart
  uint32_t count;       // of tokens whose keys are in the range
  uint32_t lowest_key;  // the range
  uint32_t highest_key;
  float highest_logit;  // of the bin
  double room;          // share of the bin's mass that may be head
  uint32_t edge_key;    // of the last token of the head, if tokens of keys next to it differ
  uint32_t edge_count;  // of the tokens of that key, how many are head; kUnknownEdge
  uint64_t target;      // the same as a mass; 0: not known yet
  uint64_t bin_mass;
  uint64_t range_mass;
  uint64_t range_moment;
  uint64_t head_mass;  // above the range; in the end, of the head
  uint64_t head_moment;
};
constexpr uint32_t kUnknownEdge = 0xffffffffu;
constexpr int kNoCrossing = std::numeric_limits<int>::min();

// Where the running mass passes P and where the tail has decayed, as far as bins tell.
struct Cut {
  int bin;       // kNoCrossing: it is in no bin
  int last_bin;  // of the tail, before it has decayed
  double room;   // share of the cut's bin that may be head
};

// What is known of a row before its logits are read.
struct LossRow {
  float temperature;        // of the temperature loss, clamped
  float top_p_temperature;  // of the soft-top-p loss, clamped
  float top_p;
  int label;
  float label_logit;
};

// Sums over the tokens of a row, relative to its largest logit.
struct LossSums {
  float max;
  double weight;        // at the temperature of the soft-top-p loss, without the label's if apart
  double moment;        // the same times (max - l) / T
  double raw_weight;    // at temperature 1
  double other_weight;  // at the temperature of the temperature loss, without the label's
  double other_moment;  // the same times (max - l) / T, with the label
  bool apart;           // the label was not added to `weight`
  uint32_t label_rank;  // among the tokens with its logit, from 1
};

// Where logits lie among the bins. Differences are of quarters, which never overflow.
struct BinGrid {
  float anchor_quarter;  // negated
  float bins_per_quarter;

  __device__ __forceinline__ BinGrid() {}
  __device__ __forceinline__ BinGrid(float anchor, float temperature, float fineness)
      : anchor_quarter(-0.25f * anchor) {
    const float scale =
        fineness * (4.0f * static_cast<float>(kLossBins) / kLossWindow) / temperature;
    const float most = std::numeric_limits<float>::max();
    bins_per_quarter = scale < most ? scale : most;
  }

  // The same in double, unbounded: as exact as what is known of a bin.
  __device__ __forceinline__ double exact_place(float logit) const {
    const double quarter = 0.25 * static_cast<double>(logit) + static_cast<double>(anchor_quarter);
    return quarter * static_cast<double>(bins_per_quarter) + 0.5;
  }
  // In units of 2^-kPositionBits of its bin: also where the bin is so far from the anchor that its
  // place has fewer digits.
  __device__ __forceinline__ uint32_t position(float logit, int bin) const {
    constexpr float kUnits = static_cast<float>(1u << kPositionBits);
    const float inside =
        fmaf(fmaf(logit, 0.25f, anchor_quarter), bins_per_quarter, 0.5f - static_cast<float>(bin));
    const float units = inside > 0.0f ? inside * kUnits : 0.0f;  // its place may have been rounded
    return units < kUnits - 1.0f ? static_cast<uint32_t>(units) : (1u << kPositionBits) - 1;
  }
  // Of a bin, in units of (l - anchor) / T.
  __device__ __forceinline__ double width(float temperature) const {
    return 4.0 / (static_cast<double>(bins_per_quarter) * static_cast<double>(temperature));
  }

  // Monotone in the logit. Beyond the bounds nothing can be told apart: see kFarthestBin.
  __device__ __forceinline__ float place(float logit) const {
    // Half a bin up, so that logits that hardly differ from the anchor share a bin with it.
    const float unbounded = fmaf(fmaf(logit, 0.25f, anchor_quarter), bins_per_quarter, 0.5f);
    const float bounded = unbounded > -0x1p24f ? unbounded : -0x1p24f;
    return bounded < 0x1p22f ? bounded : 0x1p22f;
  }
  __device__ __forceinline__ int bin(float logit) const {
    return static_cast<int>(floorf(place(logit)));
  }
};

// What the streaming read leaves, besides the bins and the maxima of pieces. x is (max - l) / T.
struct StreamedRow {
  RowStatus status;
  float max;
  float lowest;  // logit of the tokens that came into a bin
  BinGrid grid;
  int top;  // bin of the maximum
  double dust;
  double dust_moment;
  double before;  // of the label's bin, or of the dust that it is: up to the label
  double before_moment;
  double raw;
  double other;  // without the label
  double other_moment;
  uint32_t label_rank;
};

// The largest logit, among the bins.
struct TopPlace {
  int bin;
  double place;
};

// Sums over the bins and the dust.
struct BinTotals {
  TopPlace top;
  double width;  // of a bin, in units of (max - l) / T
  double weight;
  double spread;  // of the tokens in bins: standard deviation, in bins
};

// Of a row read by stream_row(): what is taken one by one, in one list by rank. Items of the walk
// are, in order of rank, its tokens and the bins that it does not have.
struct LossLists {
  int heavy_bin;  // the lowest of those whose tokens are listed because they are heavy
  int cut_top;    // from here on, below the heavy ones, because they are behind the cut,
  int cut_end;    // down to here; above cut_top where there are none
  uint32_t num_heavy;
  uint32_t num_listed;
  int label_index;  // of the label in the list; -1: it is not in it

  __device__ __forceinline__ bool has_bin(int bin) const {
    return bin >= heavy_bin || (bin <= cut_top && bin >= cut_end);
  }
  __device__ __forceinline__ int num_bins_between() const { return heavy_bin - 1 - cut_top; }
  // Place in the list; -1: the item is a bin.
  __device__ __forceinline__ int place(int item) const {
    if (item < static_cast<int>(num_heavy)) return item;
    const int behind = item - num_bins_between();
    const bool listed =
        behind >= static_cast<int>(num_heavy) && behind < static_cast<int>(num_listed);
    return listed ? behind : -1;
  }
  __device__ __forceinline__ int bin(int item) const {
    const int between = item - static_cast<int>(num_heavy);
    if (between < num_bins_between()) return heavy_bin - 1 - between;
    return cut_end - 1 - (item - num_bins_between() - static_cast<int>(num_listed));
  }
  // The last one is the dust, whose bin is the one below the window.
  __device__ __forceinline__ int num_items(int dust_bin) const {
    return static_cast<int>(num_listed) + num_bins_between() + (cut_end - dust_bin);
  }
};

// The gradient of a row with respect to its logits is, at token k, weight_k (per_h h_k + constant +
// (k counts for the label ? edge : 0)) + other_weight_k other, for the weights at the temperatures
// of the two losses, relative to the largest. The label has what makes the sum zero. See
// loss_shares.cuh for h.
struct LogitFactors {
  double per_h;
  double constant;
  double tail;  // sum of u over the tail, times the steepness
  float edge;
  float other;

  // Finite, also the sum of three of them, so that tokens without weight get 0 however small T is.
  __device__ __forceinline__ static float bounded(double factor) {
    constexpr double kMost = static_cast<double>(std::numeric_limits<float>::max()) / 4.0;
    const double below = factor > kMost ? kMost : factor;
    return static_cast<float>(below < -kMost ? -kMost : below);
  }
  __device__ __forceinline__ float of_h(double h) const { return bounded(per_h * h + constant); }
};

// The label among tokens that share the mean of their shares.
struct LabelAmongOthers {
  int item;  // -1: it is heavy
  double mass;
  double probability;
  double tail;   // sum of u before the item
  double first;  // the mass that its tail begins behind
};

// Of the gradient's kernel alone.
struct LogitGradientHead {
  LogitFactors factors;
  LabelAmongOthers label;
  float dust;  // share of the tokens that no table has, then their factor; NaN: they have no share
  // Logits of the tokens that are listed: the heavy ones, and those behind the cut.
  float lowest_heavy_logit;
  float highest_cut_logit;
  float lowest_cut_logit;
  uint32_t num_pushed;
  // Of the heavy tokens in rank order: their shares, then their factors.
  float by_rank[kHeavyCapacity];

  __device__ __forceinline__ float lowest_listed_logit() const {
    return lowest_cut_logit < lowest_heavy_logit ? lowest_cut_logit : lowest_heavy_logit;
  }
  __device__ __forceinline__ bool is_listed(float logit) const {
    return logit >= lowest_heavy_logit || (logit >= lowest_cut_logit && logit <= highest_cut_logit);
  }
};

struct LossHead {
  double scratch_double[kMaxWarps];
  uint64_t scratch64[kMaxWarps];
  uint32_t scratch32[kMaxWarps];
  float warp_max[2][kMaxWarps];
  Standing label_at;  // of the label, where a walk finds it
  Cut cut;
  Crossing crossing;
  uint32_t num_listed;
  uint32_t num_gathered;
  uint32_t uncountable;  // tokens that the counting read has no place for
  uint32_t below_range;  // tokens that are too low to be told apart by it
  LossRow known;
  StreamedRow streamed;
  BinTotals totals;
  LossLists lists;
  LossSums sums;
};

struct LossMemory {
  __device__ __forceinline__ static LossHead* head() {
    return reinterpret_cast<LossHead*>(gpu::shared_memory());
  }
  // The same place: a row is read by counting or by bins.
  __device__ __forceinline__ static LossBins* bins() {
    return reinterpret_cast<LossBins*>(gpu::shared_memory() + sizeof(LossHead));
  }
  __device__ __forceinline__ static uint32_t* value_counts() {
    return reinterpret_cast<uint32_t*>(bins());
  }
  __device__ __forceinline__ static uint32_t* heavy_keys() {
    return value_counts() + kLossValues + 1;
  }
  __device__ __forceinline__ static uint32_t* gathered_keys() {
    return heavy_keys() + kHeavyCapacity;
  }
  // Where the lists are not made yet.
  __device__ __forceinline__ static LossSubBins* sub_bins() {
    return reinterpret_cast<LossSubBins*>(heavy_keys());
  }
  // Values that occur, from the largest downwards, as places of value_counts().
  __device__ __forceinline__ static uint16_t* occurring() {
    return reinterpret_cast<uint16_t*>(heavy_keys());
  }
  // The leading halves of the order keys of the largest logits: [segments, kLossPieces].
  __device__ __forceinline__ static uint16_t* piece_max() {
    return reinterpret_cast<uint16_t*>(gathered_keys() + kGatherCapacity);
  }
  __device__ __forceinline__ static LogitGradientHead* logit_gradient(int num_segments) {
    return reinterpret_cast<LogitGradientHead*>(piece_max() + num_segments * kLossPieces);
  }
};

inline size_t loss_shared_memory_bytes(int64_t vocab) {
  const size_t segments = static_cast<size_t>((vocab + kSegment - 1) / kSegment);
  return sizeof(LossHead) + (kLossValues + 1 + kHeavyCapacity + kGatherCapacity) * 4 +
         segments * kLossPieces * sizeof(uint16_t);
}

inline size_t loss_gradient_shared_memory_bytes(int64_t vocab) {
  return loss_shared_memory_bytes(vocab) + sizeof(LogitGradientHead);
}

static_assert(sizeof(LossHead) % 8 == 0);
static_assert((kLossValues + 1 + kHeavyCapacity + kGatherCapacity) % 2 == 0);
static_assert(kHeavyCapacity <= kGatherCapacity);
static_assert(kLossBins % kLossThreads == 0 && kSubBins % kLossThreads == 0);
static_assert(sizeof(LossBins) <= (kLossValues + 1) * sizeof(uint32_t));
static_assert((kHeavyCapacity + kGatherCapacity) * sizeof(uint32_t) >=
              kLossValues * sizeof(uint16_t));
static_assert((kHeavyCapacity + kGatherCapacity) * sizeof(uint32_t) >= sizeof(LossSubBins));

// By all threads, with the same value: where registers are short, a row's numbers are kept in
// shared memory. Nobody may be reading it any more. Ends with a barrier.
template <typename T>
__device__ __forceinline__ void keep(T& place, const T& value) {
  if (gpu::thread_index() == 0) place = value;
  gpu::block_barrier();
}

__device__ __forceinline__ double block_sum(double value) {
  return block_sum(value, LossMemory::head()->scratch_double);
}
__device__ __forceinline__ uint32_t block_sum(uint32_t value) {
  return block_sum(value, LossMemory::head()->scratch32);
}
__device__ __forceinline__ uint64_t block_sum(uint64_t value) {
  return block_sum(value, LossMemory::head()->scratch64);
}

}  // namespace autodeco::cuda
