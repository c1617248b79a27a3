// A guess of the interval in which a prefix ends, from a sample of the row.
#pragma once

#include <cmath>

#include "select.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// The last token of a prefix has one of these keys. What lies above them, and what is reached with
// them, is known.
struct Bounds {
  Interval keys;
  Amount above;
  Amount upto;
};

// Some tokens of every block, at places that differ from block to block.
class Sample {
 public:
  template <typename Element>
  void take(const Row<Element>& row, const Scaling& scaling, float max, Interval keys) {
    static_assert(kColumns % kLanes == 0);
    const float low = keys.low_logit();
    const float high = keys.high_logit();
    const int step = (row.num_blocks() * kColumns + kRoom - 1) / kRoom;
    Floats lowest = splat(kInfinity);
    Floats highest = splat(-kInfinity);
    size_ = 0;
    for (int number = 0; number < row.num_blocks(); number += step) {
      const Block<Element> block = row.block(number);
      const int begin = number * 7 % (block.padded / kColumns) * kColumns;
      for (int i = begin; i < begin + kColumns; i += kLanes) {
        const Floats logits = load(block.data + i);
        const Ints inside = (logits >= low) & (logits <= high);
        lowest = (inside & (logits < lowest)) ? logits : lowest;
        highest = (inside & (logits > highest)) ? logits : highest;
        // What lies outside takes a place that its neighbour overwrites.
        for (int lane = 0; lane < kLanes; ++lane) {
          logits_[size_] = logits[lane];
          size_ -= inside[lane];
        }
      }
    }
    lowest_ = -largest_lane(-lowest);
    highest_ = largest_lane(highest);
    for (int i = size_; i % kLanes != 0; ++i) logits_[i] = -kInfinity;
    for (int i = 0; i < size_; i += kLanes) {
      const Floats weights = scaling.weights(load(logits_ + i), max);
      std::memcpy(weights_ + i, &weights, sizeof(weights));
    }
  }

  // Keys among which the prefix ends if the sample is like the row, which it need not be, and errs
  // by no more than so many standard deviations.
  Interval guess(const Bounds& bounds, Measure measure, uint64_t target, double deviations) {
    if (size_ < kFewest) return bounds.keys;
    Floats total_lanes = {};
    Floats square_lanes = {};
    for (int i = 0; i < size_; i += kLanes) {
      Floats weights = load(weights_ + i);
      if (measure == Measure::kCount) {
        weights = splat(1.0f);
        for (int lane = kLanes - 1; i + lane >= size_; --lane) weights[lane] = 0.0f;
        std::memcpy(weights_ + i, &weights, sizeof(weights));
      }
      total_lanes += weights;
      square_lanes += weights * weights;
    }
    const float total = sum_of_lanes(total_lanes);
    if (!(total > 0.0f)) return bounds.keys;
    const double above = static_cast<double>(bounds.above.of(measure));
    const double share = (static_cast<double>(target) - above) /
                         (static_cast<double>(bounds.upto.of(measure)) - above);
    const double tokens = static_cast<double>(total) * static_cast<double>(total) /
                          static_cast<double>(sum_of_lanes(square_lanes));
    const double spread = share < 1.0 ? share * (1.0 - share) : 0.0;
    const double margin = deviations * std::sqrt(spread / tokens) + 1.0 / tokens;
    fill_bins();
    Interval keys = bounds.keys;
    const double wanted_high = (share - margin) * static_cast<double>(total);
    const double wanted_low = (share + margin) * static_cast<double>(total);
    bool low_found = false;
    double reached = 0.0;
    for (int bin = kBins - 1; bin >= 0; --bin) {
      if (weight_[bin] == 0.0f) continue;
      const double before = reached;
      reached += static_cast<double>(weight_[bin]);
      if (before < wanted_high && reached >= wanted_high) {
        keys.high = order_key(largest_in(bin));
      }
      if (reached >= wanted_low) {
        keys.low = order_key(smallest_in(bin));
        low_found = true;
        break;
      }
    }
    // To the end of the bounds, unless it may be among equal logits, which are one key.
    if (!low_found && keys.high == order_key(lowest_)) keys.low = keys.high;
    return keys;
  }

 private:
  static constexpr int kColumns = 16;  // of a block
  static constexpr int kRoom = 8192;
  static constexpr int kFewest = 64;
  static constexpr int kBins = 1024;  // of equal width

  // Where the bins are too narrow for a float, the place is infinite or NaN: the last bin.
  Ints bins_of(Floats logits) const {
    const Floats place = (logits - lowest_) * bins_per_unit_;
    return __builtin_convertvector(place < kBins - 1 ? place : splat(kBins - 1), Ints);
  }

  void fill_bins() {
    bins_per_unit_ = highest_ > lowest_ ? (kBins - 1) / (highest_ - lowest_) : 0.0f;
    for (int bin = 0; bin < kBins; ++bin) weight_[bin] = 0.0f;
    for (int i = 0; i < size_; i += kLanes) {
      const Ints bins = bins_of(load(logits_ + i));
      for (int lane = 0; lane < kLanes && i + lane < size_; ++lane) {
        weight_[bins[lane]] += weights_[i + lane];
      }
    }
  }

  float largest_in(int bin) const {
    Floats largest = splat(-kInfinity);
    for (int i = 0; i < size_; i += kLanes) {
      const Floats logits = load(logits_ + i);
      largest = larger(largest, bins_of(logits) == bin ? logits : splat(-kInfinity));
    }
    return largest_lane(largest);
  }

  float smallest_in(int bin) const {
    Floats largest = splat(-kInfinity);  // of the negated logits
    for (int i = 0; i < size_; i += kLanes) {
      const Floats logits = load(logits_ + i);
      const Ints inside = (bins_of(logits) == bin) & (logits > -kInfinity);  // not the padding
      largest = larger(largest, inside ? -logits : splat(-kInfinity));
    }
    return -largest_lane(largest);
  }

  int size_;
  float lowest_;
  float highest_;
  alignas(64) float logits_[kRoom + kColumns];
  alignas(64) float weights_[kRoom + kColumns];
  float bins_per_unit_;
  float weight_[kBins];
};

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
