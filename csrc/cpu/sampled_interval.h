// A guess of the interval in which a prefix ends, from a sample of the row.
#pragma once

#include <cmath>

#include "select.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// The last token of a prefix has one of these keys. What lies above them, and what is reached with
// the key `reached`, is known.
struct Bounds {
  Interval keys;
  Amount above;
  Amount upto;
  uint32_t reached;  // the lowest of `keys`, or further down
};

// Some tokens of every block, at places that differ from block to block.
class Sample {
 public:
  template <typename Element>
  void take(const Row<Element>& row, const Scaling& scaling, float max, const Bounds& bounds) {
    static_assert(kColumns % kLanes == 0);
    const float reached = logit_of_key(bounds.reached);
    const float low = bounds.keys.low_logit();
    const float high = bounds.keys.high_logit();
    const int step = (row.num_blocks() * kColumns + kRoom - 1) / kRoom;
    Floats lowest = splat(kInfinity);
    Floats highest = splat(-kInfinity);
    Ints inside_lanes = {};
    int size = 0;
    columns_ = 0;
    for (int number = 0; number < row.num_blocks(); number += step) {
      const Block<Element> block = row.block(number);
      const int begin = number * 7 % (block.padded / kColumns) * kColumns;
      const int existing = block.size - begin;
      columns_ += existing < 0 ? 0 : existing < kColumns ? existing : kColumns;
      for (int i = begin; i < begin + kColumns; i += kLanes) {
        const Floats logits = load(block.data + i);
        const Mask taken = at_least(logits, splat(reached)) & at_least(splat(high), logits);
        const Mask inside = taken & at_least(logits, splat(low));
        lowest = choose(inside & greater(lowest, logits), logits, lowest);
        highest = choose(inside & greater(logits, highest), logits, highest);
        count_where(inside, inside_lanes);
        size += write_chosen(logits_ + size, logits, taken);
      }
    }
    size_ = size;
    inside_ = count_of(inside_lanes);
    fraction_ = static_cast<double>(columns_) / row.vocab();
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
    if (inside_ < kFewest) return bounds.keys;
    if (measure == Measure::kCount) count_each_once();
    fill_bins();
    const double total = static_cast<double>(running_[kBins - 1]);
    if (!(total > 0.0)) return bounds.keys;
    // What a sample just like the row would hold, of all within the bounds and of the prefix.
    const double unit = fraction_ / (measure == Measure::kCount ? 1.0 : kMassScale);
    const double above = static_cast<double>(bounds.above.of(measure));
    const double expected = (static_cast<double>(bounds.upto.of(measure)) - above) * unit;
    const double expected_prefix = (static_cast<double>(target) - above) * unit;
    const Spread spread = spread_of_prefix(bin_reaching(expected_prefix / expected * total));
    const double wanted = expected_prefix - spread.slope * (expected - total);
    const double margin = deviations * spread.deviation + spread.heaviness;
    Interval keys = bounds.keys;
    if (wanted - margin > 0.0) {
      keys.high = order_key(largest_in(bin_reaching(wanted - margin)));
    }
    if (wanted + margin <= total) {
      keys.low = order_key(smallest_in(bin_reaching(wanted + margin)));
    } else if (keys.high == order_key(lowest_)) {
      // To the end of the bounds, unless it may be among equal logits, which are one key.
      keys.low = keys.high;
    }
    return listable(keys, bin_reaching(wanted));
  }

 private:
  static constexpr int kColumns = 16;  // of a block
  static constexpr int kRoom = 8192;
  static constexpr int kFewest = 64;
  static constexpr int kBins = 1024;  // of equal width, the highest logits first

  // The keys, or where the list has no room for so many tokens and a few logits are all of them,
  // the likeliest of those: one key is counted, whatever its tokens.
  Interval listable(Interval keys, int likeliest_bin) const {
    const int tokens = count_within(keys);
    if (tokens <= CandidateList::kRoom * fraction_) return keys;
    const Interval likeliest = {order_key(smallest_in(likeliest_bin)),
                                order_key(largest_in(likeliest_bin))};
    const bool few_logits =
        likeliest.low == likeliest.high && 4 * count_within(likeliest) >= tokens;
    return few_logits ? likeliest : keys;
  }

  int count_within(Interval keys) const {
    const Floats low = splat(keys.low_logit());
    const Floats high = splat(keys.high_logit());
    Ints counts = {};
    for (int i = 0; i < size_; i += kLanes) {
      const Floats logits = load(logits_ + i);
      count_where(at_least(logits, low) & at_least(high, logits), counts);
    }
    return static_cast<int>(count_of(counts));
  }

  // How the sum of the sample's prefix varies from sample to sample.
  struct Spread {
    double slope;      // how much larger it is where the whole sample's is larger by 1
    double deviation;  // the standard deviation of the rest
    double heaviness;  // mean weight of a token, by weight
  };

  // Of the prefix that ends with this bin. What the row holds is known and what the sample holds
  // varies with it, so that only what the two do not share is left in doubt.
  Spread spread_of_prefix(int last_bin) const {
    Floats squares = {};
    Floats prefix_squares = {};
    for (int i = 0; i < size_; i += kLanes) {
      const Floats weights = load(weights_ + i);
      const Floats square = weights * weights;
      squares += square;
      prefix_squares += bins_of(load(logits_ + i)) <= last_bin ? square : Floats{};
    }
    const double columns = columns_;
    const double total = static_cast<double>(running_[kBins - 1]);
    const double prefix = static_cast<double>(running_[last_bin]);
    const double square = static_cast<double>(sum_of_lanes(squares));
    const double prefix_square = static_cast<double>(sum_of_lanes(prefix_squares));
    const double variance = square - total * total / columns;
    const double shared = prefix_square - prefix * total / columns;
    // Equal weights vary by rounding alone.
    const double slope = variance > 0x1p-12 * square ? shared / variance : 0.0;
    const double rest = prefix_square - prefix * prefix / columns - slope * shared;
    return {slope, rest > 0.0 ? std::sqrt(rest) : 0.0, square / total};
  }

  void count_each_once() {
    for (int i = 0; i < size_; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) weights_[i + lane] = i + lane < size_ ? 1.0f : 0.0f;
    }
  }

  // The last bin holds what is below the bounds too. Where the bins are too narrow for a float, the
  // place is infinite or NaN: the last bin.
  Ints bins_of(Floats logits) const {
    const Floats place = (highest_ - logits) * bins_per_unit_;
    return __builtin_convertvector(place < kBins - 1 ? place : splat(kBins - 1), Ints);
  }

  void fill_bins() {
    bins_per_unit_ = highest_ > lowest_ ? (kBins - 1) / (highest_ - lowest_) : 0.0f;
    for (int bin = 0; bin < kBins; ++bin) running_[bin] = 0.0f;
    for (int i = 0; i < size_; i += kLanes) {
      const Ints bins = bins_of(load(logits_ + i));
      for (int lane = 0; lane < kLanes && i + lane < size_; ++lane) {
        running_[bins[lane]] += weights_[i + lane];
      }
    }
    float sum = 0.0f;
    for (int bin = 0; bin < kBins; ++bin) running_[bin] = sum += running_[bin];
  }

  // The first bin at which the running weight reaches this, or the last.
  int bin_reaching(double weight) const {
    int low = 0;
    int high = kBins - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (static_cast<double>(running_[middle]) < weight) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // The last bin reaches to the lowest logit of the bounds, wherever rounding has put that.
  float largest_in(int bin) const {
    Floats largest = splat(bin == kBins - 1 ? lowest_ : -kInfinity);
    for (int i = 0; i < size_; i += kLanes) {
      const Floats logits = load(logits_ + i);
      largest = larger(largest, bins_of(logits) == bin ? logits : splat(-kInfinity));
    }
    return largest_lane(largest);
  }

  float smallest_in(int bin) const {
    // Of the negated logits.
    Floats largest = splat(bin == kBins - 1 ? -lowest_ : -kInfinity);
    for (int i = 0; i < size_; i += kLanes) {
      const Floats logits = load(logits_ + i);
      const Ints inside = (bins_of(logits) == bin) & (logits >= lowest_);
      largest = larger(largest, inside ? -logits : splat(-kInfinity));
    }
    return -largest_lane(largest);
  }

  int size_;         // tokens within the bounds, or below them and reached
  uint64_t inside_;  // within the bounds
  int columns_;      // looked at
  double fraction_;  // of the row
  float lowest_;
  float highest_;
  alignas(64) float logits_[kRoom + kColumns];
  alignas(64) float weights_[kRoom + kColumns];
  float bins_per_unit_;
  float running_[kBins];  // weight of the bins up to each
};

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
