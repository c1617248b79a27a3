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
  bool counted;      // false: `upto.count` may count excluded tokens too
};

// Some tokens of every block, at places that differ from block to block and from row to row.
class Sample {
 public:
  static constexpr int kColumns = 16;  // of a block

  // The first column looked at of a block that can have `padded`.
  static int first_column(int number, int padded, uint32_t shift) {
    const uint32_t places = static_cast<uint32_t>(padded / kColumns);
    return static_cast<int>((static_cast<uint32_t>(number) * 7 + shift) % places) * kColumns;
  }

  // Depends on the row alone, but differs between rows that are the same at some places: what lies
  // at fixed places would be seen in all of them. Attempts look at different places, so that what
  // misleads one does not mislead the next.
  static uint32_t shift_of(const RowSummary& summary, int attempt) {
    const uint32_t row = order_key(summary.max) + static_cast<uint32_t>(summary.argmax);
    return (row * 0x9e3779b1u >> 27) + static_cast<uint32_t>(attempt) * 11;
  }

  template <typename Element>
  void take(const Row<Element>& row, const Scaling& scaling, const Bounds& bounds, float max,
            uint32_t shift) {
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
      const int begin = first_column(number, block.padded, shift);
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
    const double total = bins_.running[kBins - 1];
    if (!(total > 0.0)) return bounds.keys;
    // What a sample just like the row would hold, of all within the bounds and of the prefix.
    const double unit = fraction_ / (measure == Measure::kCount ? 1.0 : kMassScale);
    const double above = static_cast<double>(bounds.above.of(measure));
    const bool known = measure == Measure::kMass || bounds.counted;
    const double expected_prefix = (static_cast<double>(target) - above) * unit;
    const double expected =
        known ? (static_cast<double>(bounds.upto.of(measure)) - above) * unit : total;
    const Interval likeliest = keys_reaching(expected_prefix / expected * total);
    const Spread spread = spread_around(logit_of_key(likeliest.high), known);
    // Of what follows the prefix, which may be very little of the total.
    const double wanted = total - (expected - expected_prefix) + spread.slope * (expected - total);
    const double margin = deviations * spread.deviation + spread.heaviness;
    Interval keys = bounds.keys;
    if (wanted - margin > 0.0) keys.high = keys_reaching(wanted - margin).high;
    if (wanted + margin <= total) {
      keys.low = keys_reaching(wanted + margin).low;
    } else if (keys.high == order_key(lowest_)) {
      // To the end of the bounds, unless it may be among equal logits, which are one key.
      keys.low = keys.high;
    }
    return listable(keys, wanted);
  }

 private:
  static constexpr int kRoom = 8192;
  static constexpr int kFewest = 64;
  static constexpr int kFew = 32;     // about 1,000 of the row
  static constexpr int kBins = 1024;  // the highest logits first

  // Bins of the sample's tokens.
  struct Bins {
    double running[kBins];  // weight of the bins up to each

    // The first bin at which the running weight reaches this, or the last.
    int reaching(double weight, int last) const {
      int low = 0;
      int high = last;
      while (low < high) {
        const int middle = (low + high) / 2;
        if (running[middle] < weight) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      return low;
    }

    void add_up(double sum) {
      for (int bin = 0; bin < kBins; ++bin) running[bin] = sum += running[bin];
    }
  };

  // The keys, or where the list has no room for so many tokens and a few logits are all of them,
  // the likeliest of those: one key is counted, whatever its tokens.
  Interval listable(Interval keys, double wanted) const {
    const int tokens = count_within(keys);
    if (tokens <= CandidateList::kRoom * fraction_) return keys;
    const Interval likeliest = keys_reaching(wanted);
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

  // How the sum of what follows the sample's prefix varies from sample to sample.
  struct Spread {
    double slope;      // how much larger it is where the whole sample's is larger by 1
    double deviation;  // the standard deviation of the rest
    double heaviness;  // mean weight of a token, by weight
  };

  // What the row holds is known and what the sample holds varies with it, so that only what the two
  // do not share is left in doubt. What lies above this logit and the rest are summed apart,
  // because one of them may be too little to be a difference of sums.
  Spread spread_around(float logit, bool total_known) const {
    Floats sums[2] = {};  // of the prefix and of the rest
    Floats squares[2] = {};
    for (int i = 0; i < size_; i += kLanes) {
      const Floats weights = load(weights_ + i);
      const Mask before = greater(load(logits_ + i), splat(logit));
      const Floats weights_before = choose(before, weights, Floats{});
      const Floats weights_after = choose(before, Floats{}, weights);
      sums[0] += weights_before;
      sums[1] += weights_after;
      squares[0] += weights_before * weights_before;
      squares[1] += weights_after * weights_after;
    }
    const double columns = columns_;
    const double prefix = static_cast<double>(sum_of_lanes(sums[0]));
    const double rest = static_cast<double>(sum_of_lanes(sums[1]));
    const double total = prefix + rest;
    const double prefix_square = static_cast<double>(sum_of_lanes(squares[0]));
    const double rest_square = static_cast<double>(sum_of_lanes(squares[1]));
    const double square = prefix_square + rest_square;
    const double prefix_variance = prefix_square - prefix * prefix / columns;
    const double rest_variance = rest_square - rest * rest / columns;
    const double shared = prefix * rest / columns;
    const double variance = square - total * total / columns;
    const double heaviness = rest < prefix ? rest_square / rest : square / total;
    // Equal weights vary by rounding alone.
    if (!total_known || !(variance > 0x1p-12 * square)) {
      const double least = rest_variance < prefix_variance ? rest_variance : prefix_variance;
      const double unshared = total_known ? least : prefix_variance;
      return {0.0, unshared > 0.0 ? std::sqrt(unshared) : 0.0, heaviness};
    }
    const double left = (prefix_variance * rest_variance - shared * shared) / variance;
    return {(rest_variance - shared) / variance, left > 0.0 ? std::sqrt(left) : 0.0, heaviness};
  }

  void count_each_once() {
    for (int i = 0; i < size_; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) weights_[i + lane] = i + lane < size_ ? 1.0f : 0.0f;
    }
  }

  // Bins of equal width. The last one holds what is below the bounds too. Where they are too narrow
  // or too wide for a float, the place is infinite or NaN: the last bin.
  Ints bins_of(Floats logits) const {
    const Floats place = (highest_ - logits) * bins_per_unit_;
    return __builtin_convertvector(place < kBins - 1 ? place : splat(kBins - 1), Ints);
  }

  void fill_bins() {
    bins_per_unit_ = highest_ > lowest_ ? (kBins - 1) / (highest_ - lowest_) : 0.0f;
    // Neighbours add to different sums, because equal logits would wait for each other.
    Bins odd = {};
    bins_ = {};
    for (int i = 0; i < size_; i += kLanes) {
      const Ints bins = bins_of(load(logits_ + i));  // the last bin for what pads, without weight
      for (int lane = 0; lane < kLanes; lane += 2) {
        bins_.running[bins[lane]] += static_cast<double>(weights_[i + lane]);
        odd.running[bins[lane + 1]] += static_cast<double>(weights_[i + lane + 1]);
      }
    }
    for (int bin = 0; bin < kBins; ++bin) bins_.running[bin] += odd.running[bin];
    bins_.add_up(0.0);
  }

  // Some of the sample's tokens: those of the keys from their lowest to their highest.
  struct Place {
    Interval keys;
    uint64_t tokens;
  };

  // The tokens among which the running weight of the sample, from the highest logit downwards,
  // reaches this, or the last of them: equal, or so few that nothing is won by fewer.
  Interval keys_reaching(double weight) const {
    const int bin = bins_.reaching(weight, kBins - 1);
    const bool last = bin == kBins - 1;
    // The last bin reaches to the lowest logit of the bounds, wherever rounding has put that.
    Place place = place_where(last, [&](Floats logits) { return bins_of(logits) == bin; });
    double above = bin > 0 ? bins_.running[bin - 1] : 0.0;
    while (place.keys.low != place.keys.high && place.tokens > kFew) {
      place = narrowed(place.keys, weight, above);
    }
    return place.keys;
  }

  template <typename Choose>
  Place place_where(bool with_lowest, Choose chosen) const {
    Floats largest = splat(with_lowest ? lowest_ : -kInfinity);
    Floats largest_negated = splat(with_lowest ? -lowest_ : -kInfinity);
    Ints tokens = {};
    for (int i = 0; i < size_; i += kLanes) {
      const Floats logits = load(logits_ + i);
      const Ints inside = chosen(logits) & (logits >= lowest_);
      largest = larger(largest, inside ? logits : splat(-kInfinity));
      largest_negated = larger(largest_negated, inside ? -logits : splat(-kInfinity));
      tokens -= inside;
    }
    return {{order_key(-largest_lane(largest_negated)), order_key(largest_lane(largest))},
            count_of(tokens)};
  }

  // The part of these keys, both of which the sample has, in which the running weight is reached:
  // one of kBins bins of as many keys. `above` is the weight above the keys, and then above it.
  Place narrowed(Interval keys, double weight, double& above) const {
    Bins bins = {};
    int shift = 0;
    while ((keys.high - keys.low) >> shift >= kBins) ++shift;
    const Floats lowest = splat(keys.low_logit());
    const Floats highest = splat(keys.high_logit());
    for (int i = 0; i < size_; i += kLanes) {
      const Floats logits = load(logits_ + i);
      uint32_t chosen = bits_of(at_least(logits, lowest) & at_least(highest, logits));
      for (; chosen != 0; chosen &= chosen - 1) {
        const int place = i + __builtin_ctz(chosen);
        bins.running[(keys.high - order_key(logits_[place])) >> shift] +=
            static_cast<double>(weights_[place]);
      }
    }
    bins.add_up(above);
    const int bin = bins.reaching(weight, static_cast<int>((keys.high - keys.low) >> shift));
    if (bin > 0) above = bins.running[bin - 1];
    const uint32_t last = keys.high - (static_cast<uint32_t>(bin) << shift);
    const uint32_t width = (1u << shift) - 1;
    const Interval part = {last - keys.low < width ? keys.low : last - width, last};
    const float low = part.low_logit();
    const float high = part.high_logit();
    return place_where(false, [&](Floats logits) { return (logits >= low) & (logits <= high); });
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
  Bins bins_;
};

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
