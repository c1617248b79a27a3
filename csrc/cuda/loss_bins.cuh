// The streaming read of any row. Tokens are counted in bins of (l - anchor) / T as they pass, in a
// window that moves up with the largest logit so far: bin b is at b % kLossBins. What falls out of
// the window, or never was in it, is summed as dust.
#pragma once

#include "loss_walk.cuh"

namespace autodeco::cuda {

// A place is a float: where the largest logit is farther from the anchor than this, a bin has fewer
// than 1024 places, and the row is read again with a better anchor.
constexpr int kFarthestBin = 1 << 14;
// The label is the anchor where the largest of the first logits is no farther from it: dT is made
// of distances from the label, and what is near the anchor is known best.
constexpr int kNearLabel = 256;
// A row that lies in no more bins than these is read into finer ones.
constexpr int kFewBins = 32;

__device__ __forceinline__ uint32_t slot_of(int bin) {
  return static_cast<uint32_t>(bin) % kLossBins;
}

// The tokens of a bin, relative to the largest logit.
struct BinContent {
  uint32_t count;
  bool equal;       // as far as positions tell
  double weight;    // sum of e^-x, x = (l_top - l) / T
  double distance;  // mean of x by weight
};

__device__ __forceinline__ BinContent bin_content(const LossBins& bins, int bin,
                                                  const TopPlace& top, double width) {
  constexpr double kUnit = 1.0 / (1u << kPositionBits);
  const uint32_t slot = slot_of(bin);
  BinContent content = {};
  content.count = bins.count[slot];
  if (content.count == 0) return content;
  const uint64_t positions =
      static_cast<uint64_t>(bins.position_high[slot]) << 32 | bins.position_low[slot];
  const uint64_t squares =
      static_cast<uint64_t>(bins.square_high[slot]) << 32 | bins.square_low[slot];
  const double inverse = 1.0 / content.count;
  const double mean = static_cast<double>(positions) * inverse;
  const double spread = static_cast<double>(squares) * inverse - mean * mean;
  // The mean of the squares is the square of the mean for equal positions alone.
  content.equal =
      positions % content.count == 0 && squares == positions / content.count * positions;
  const double variance =
      content.equal || spread < 0.0 ? 0.0 : spread * kUnit * kUnit * width * width;
  // Equal tokens in the bin of the largest are as large.
  const bool largest = content.equal && bin == top.bin;
  const double x = largest ? 0.0 : (top.place - (bin + (mean + 0.5) * kUnit)) * width;
  const double weight = exponential(-x);
  content.weight = content.count * weight * (1.0 + 0.5 * variance);
  content.distance = x - variance;
  return content;
}

// Tokens that a thread keeps back while one after the other goes to the same bin.
struct PendingLossBin {
  uint32_t slot = 0;
  uint32_t count = 0;
  uint32_t positions = 0;  // of the tokens of a lane, 32 at most
  uint64_t squares = 0;

  __device__ __forceinline__ void add(LossBins* bins, int bin, uint32_t position) {
    const uint32_t token_slot = slot_of(bin);
    if (token_slot != slot) {
      flush(bins);
      slot = token_slot;
    }
    ++count;
    positions += position;
    squares += static_cast<uint64_t>(position) * position;
  }

  __device__ __forceinline__ void flush(LossBins* bins) {
    if (count == 0) return;
    gpu::atomic_add(&bins->count[slot], count);
    atomic_add_mass(&bins->position_low[slot], &bins->position_high[slot], positions);
    atomic_add_mass(&bins->square_low[slot], &bins->square_high[slot], squares);
    count = 0;
    positions = 0;
    squares = 0;
  }
};

// Sums of 2^-x and of x 2^-x, x in bits below a reference, of what a thread has seen.
struct RunningSums {
  double dust = 0.0;
  double dust_moment = 0.0;
  // Of the label's bin, or of the dust where that is below the window: what ranks before the label,
  // and the label.
  double before = 0.0;
  double before_moment = 0.0;
  double raw = 0.0;    // at temperature 1
  double other = 0.0;  // at the temperature of the temperature loss, of all tokens but the label
  double other_moment = 0.0;
  float reference = -kInfinity;
  float lowest = kInfinity;  // of the window

  // The reference rises; how much that is in bits at each temperature.
  __device__ __forceinline__ void raise(float bits, float raw_bits, float other_bits) {
    constexpr double kNats = 0.6931471805599453;
    const double scale = exponential(-kNats * static_cast<double>(bits));
    const double shift = static_cast<double>(bits);
    dust_moment = scale * (dust_moment + shift * dust);
    before_moment = scale * (before_moment + shift * before);
    dust *= scale;
    before *= scale;
    raw *= exponential(-kNats * static_cast<double>(raw_bits));
    const double other_scale = exponential(-kNats * static_cast<double>(other_bits));
    other_moment = other_scale * (other_moment + static_cast<double>(other_bits) * other);
    other *= other_scale;
  }
};

// Bits of weight by a difference of quarters of logits, at most 0, in two words: one would be off
// by 10^-7 of its size, which is 20 or more. Neither word is negative: where both products
// overflow, both are -inf.
struct QuarterBits {
  float high;
  float low;

  __device__ __forceinline__ explicit QuarterBits(float temperature) {
    const double bits = 4.0 * 1.4426950408889634 / static_cast<double>(temperature);
    const float most = std::numeric_limits<float>::max();
    high = bits < static_cast<double>(most) ? static_cast<float>(bits) : most;
    if (static_cast<double>(high) > bits) {
      high = std::bit_cast<float>(std::bit_cast<uint32_t>(high) - 1);
    }
    const double rest = bits - static_cast<double>(high);
    low = rest < static_cast<double>(high) ? static_cast<float>(rest) : 0.0f;
  }
  // At least -200.
  __device__ __forceinline__ float of(float difference) const {
    const float bits = fmaf(difference, high, difference * low);
    return bits > -200.0f ? bits : -200.0f;
  }
};

// Largest logits of the pieces and of the segment that a warp holds.
__device__ __forceinline__ float note_pieces(const float* logits, int segment, bool exists) {
  const auto larger = [](float a, float b) { return gpu::max_or_nan(a, b); };
  float max = -kInfinity;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float piece = logits[v * kVector];
#pragma unroll
    for (int i = 1; i < kVector; ++i) piece = larger(piece, logits[v * kVector + i]);
#pragma unroll
    for (int mask = 1; mask < kLossPieceLanes; mask *= 2) {
      piece = larger(piece, gpu::shuffle_xor(piece, mask));
    }
    if (exists && gpu::lane_index() % kLossPieceLanes == 0) {
      const int index = segment * kLossPieces + v * (32 / kLossPieceLanes) +
                        static_cast<int>(gpu::lane_index()) / kLossPieceLanes;
      LossMemory::piece_max()[index] = static_cast<uint16_t>(order_key(piece) >> 16);
    }
    max = larger(max, piece);
  }
  return larger(max, gpu::shuffle_xor(max, kLossPieceLanes));
}

// Makes room for bins up to new_top: what was in their slots becomes dust, and what of it was above
// the label's bin ranks before the label. Ends with a barrier.
__device__ __forceinline__ void move_window(LossBins* bins, const BinGrid& grid, int top,
                                            int new_top, const LossRow& known, RunningSums& sums) {
  const double width = grid.width(known.top_p_temperature);
  const int label_bin = grid.bin(known.label_logit);
  constexpr double kBits = 1.4426950408889634;
  const int64_t rise = static_cast<int64_t>(new_top) - top;
  const int cleared = rise < kLossBins ? static_cast<int>(rise) : static_cast<int>(kLossBins);
  const TopPlace reference = {new_top, grid.exact_place(sums.reference)};
  for (int i = static_cast<int>(gpu::thread_index()); i < cleared;
       i += static_cast<int>(gpu::num_threads())) {
    const int bin = top - static_cast<int>(kLossBins) + 1 + i;
    const BinContent content = bin_content(*bins, bin, reference, width);
    const double moment = content.weight * content.distance * kBits;
    sums.dust += content.weight;
    sums.dust_moment += moment;
    if (bin > label_bin) {
      sums.before += content.weight;
      sums.before_moment += moment;
    }
    const uint32_t slot = slot_of(bin);
    bins->count[slot] = 0;
    bins->position_low[slot] = bins->position_high[slot] = 0;
    bins->square_low[slot] = bins->square_high[slot] = 0;
  }
  gpu::block_barrier();
}

// Sums at the temperature of the temperature loss of the logits of a segment that a warp holds.
__device__ __forceinline__ void add_other(const float* logits, int segment, int label,
                                          const QuarterBits& bits, RunningSums& sums) {
  const float reference_quarter = -0.25f * sums.reference;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float weight = 0.0f;
    float moment = 0.0f;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (column_of(segment, v, i) == label) continue;
      const float x = bits.of(fmaf(logits[v * kVector + i], 0.25f, reference_quarter));
      const float one = gpu::exp2_approximate(x);
      weight += one;
      moment -= one * x;
    }
    sums.other += static_cast<double>(weight);
    sums.other_moment += static_cast<double>(moment);
  }
}

// The logits of a segment that a warp holds: into the bins, or to the sums.
__device__ __forceinline__ void add_segment(const float* logits, int segment, const LossRow& known,
                                            bool may_rank_before, const BinGrid& grid, int top,
                                            const QuarterBits& bits, PendingLossBin& pending,
                                            RunningSums& sums, uint32_t& label_rank) {
  const int dust_bin = top - static_cast<int>(kLossBins);
  const int bin_of_label = grid.bin(known.label_logit);
  const int label_bin = bin_of_label > dust_bin ? bin_of_label : dust_bin;
  constexpr float kRawBits = 4.0f * 1.44269504f;
  LossBins* bins = LossMemory::bins();
  const float reference_quarter = -0.25f * sums.reference;
  float dust = 0.0f;
  float dust_moment = 0.0f;
  float before = 0.0f;
  float before_moment = 0.0f;
  float raw = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float vector_raw[kVector];
    float vector_before = 0.0f;
    float vector_before_moment = 0.0f;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float logit = logits[v * kVector + i];
      const float difference = fmaf(logit, 0.25f, reference_quarter);
      vector_raw[i] = gpu::exp2_approximate(difference * kRawBits);
      const int bin = grid.bin(logit);
      const bool in_window = bin > dust_bin;
      if (in_window) {
        pending.add(bins, bin, grid.position(logit, bin));
        sums.lowest = logit < sums.lowest ? logit : sums.lowest;
      }
      const bool ties = logit == known.label_logit && column_of(segment, v, i) <= known.label;
      const bool with_label = (in_window ? bin : dust_bin) == label_bin;
      const bool ranks_before =
          may_rank_before && with_label && (logit > known.label_logit || ties);
      label_rank += ties;
      if (in_window && !ranks_before) continue;
      const float x = bits.of(difference);
      const float weight = gpu::exp2_approximate(x);
      if (!in_window) {
        dust += weight;
        dust_moment -= weight * x;
      }
      if (ranks_before) {
        vector_before += weight;
        vector_before_moment -= weight * x;
      }
    }
    raw += ((vector_raw[0] + vector_raw[1]) + (vector_raw[2] + vector_raw[3])) +
           ((vector_raw[4] + vector_raw[5]) + (vector_raw[6] + vector_raw[7]));
    before += vector_before;
    before_moment += vector_before_moment;
  }
  sums.dust += static_cast<double>(dust);
  sums.dust_moment += static_cast<double>(dust_moment);
  sums.before += static_cast<double>(before);
  sums.before_moment += static_cast<double>(before_moment);
  sums.raw += static_cast<double>(raw);
}

__device__ __forceinline__ BinGrid first_grid(float max, const LossRow& known) {
  if (known.label_logit > -kInfinity) {
    const BinGrid about_label(known.label_logit, known.top_p_temperature, 1.0f);
    const int above = about_label.bin(max);
    if (above <= kNearLabel && above >= -kNearLabel) return about_label;
  }
  return BinGrid(max, known.top_p_temperature, 1.0f);
}

// The read: every warp takes one segment a round, after which all know the largest logit so far.
// With a finite `anchor` the bins are relative to it, otherwise to the label or to the largest
// logit of the first round that has a finite one. Their window is kLossWindow / fineness wide.
// Leaves head()->streamed.
template <typename Element>
__device__ __forceinline__ void stream_row(const Row<Element>& row, const LossRow& known,
                                           float anchor, float fineness) {
  LossHead* head = LossMemory::head();
  LossBins* bins = LossMemory::bins();
  const int warp = static_cast<int>(gpu::warp_index());
  const QuarterBits bits(known.top_p_temperature);
  const QuarterBits other_bits(known.temperature);
  const bool has_other = known.temperature != known.top_p_temperature;
  for (unsigned i = gpu::thread_index(); i < sizeof(LossBins) / sizeof(uint32_t);
       i += gpu::num_threads()) {
    LossMemory::value_counts()[i] = 0;  // before the barrier of the first round
  }
  StreamedRow result = {};
  RunningSums sums;
  PendingLossBin pending;
  uint32_t label_rank = 0;
  bool has_grid = anchor > -kInfinity;
  if (has_grid) {
    result.grid = BinGrid(anchor, known.top_p_temperature, fineness);
    result.top = result.grid.bin(anchor);
  }
#pragma unroll 1
  for (int first = 0; first < row.num_segments; first += num_warps()) {
    const int segment = first + warp;
    const bool exists = segment < row.num_segments;
    float logits[kLaneLogits];
    if (exists) {
      row.load_segment(segment, logits);
    } else {
#pragma unroll
      for (int i = 0; i < kLaneLogits; ++i) logits[i] = -kInfinity;
    }
    const float segment_max = note_pieces(logits, segment, exists);
    const int round = first / num_warps() % 2;
    // Before the barrier of the last round nobody wrote to this half any more.
    if (gpu::lane_index() == 0) head->warp_max[round][warp] = segment_max;
    gpu::block_barrier();
    float max = sums.reference;
    for (int other = 0; other < num_warps(); ++other) {
      max = gpu::max_or_nan(max, head->warp_max[round][other]);
    }
    if (!(max < kInfinity)) {  // NaN too; the same in the whole block
      result.status = logits_status(max);
      keep(head->streamed, result);
      return;
    }
    if (max == -kInfinity) continue;
    if (!has_grid) {
      result.grid = first_grid(max, known);
      result.top = result.grid.bin(max);
      has_grid = true;
    }
    if (max > sums.reference) {
      if (sums.reference > -kInfinity) {
        const float rise = 0.25f * max - 0.25f * sums.reference;
        sums.raise(-bits.of(-rise), rise * 4.0f * 1.44269504f, -other_bits.of(-rise));
      }
      sums.reference = max;
      const int new_top = result.grid.bin(max);
      if (new_top > result.top) {
        move_window(bins, result.grid, result.top, new_top, known, sums);
        result.top = new_top;
      }
    }
    if (has_other) add_other(logits, segment, known.label, other_bits, sums);
    add_segment(logits, segment, known, segment_max >= known.label_logit, result.grid, result.top,
                bits, pending, sums, label_rank);
    pending.flush(bins);
  }
  constexpr double kNats = 0.6931471805599453;
  result.max = sums.reference;
  if (!(result.max > -kInfinity)) {
    result.status = RowStatus::kNoFiniteLogit;
    keep(head->streamed, result);
    return;
  }
  result.dust = block_sum(sums.dust);
  result.dust_moment = block_sum(sums.dust_moment) * kNats;
  result.before = block_sum(sums.before);
  result.before_moment = block_sum(sums.before_moment) * kNats;
  result.raw = block_sum(sums.raw);
  result.other = block_sum(sums.other);
  result.other_moment = block_sum(sums.other_moment) * kNats;
  result.label_rank = block_sum(label_rank);
  result.lowest = -block_max(-sums.lowest, head->warp_max[0]);
  keep(head->streamed, result);
}

}  // namespace autodeco::cuda
