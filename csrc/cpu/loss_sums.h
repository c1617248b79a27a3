// The first read of a row with a label: the sums of the training losses, and the tokens that weigh.
#pragma once

#include "autodeco/soft_top_p.h"
#include "row_summary.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

inline float float_above(float value) { return logit_of_key(order_key(value) + 1); }

// Smallest float that is not below `value`, so that comparing floats with it is exact; finite or
// +infinity.
inline float float_at_least(double value) {
  constexpr double kLargest = static_cast<double>(kLargestFloat);
  if (value > kLargest) return kInfinity;
  if (value < -kLargest) return -kLargestFloat;
  const float rounded = static_cast<float>(value);
  return static_cast<double>(rounded) < value ? float_above(rounded) : rounded;
}

// Weights exp((l - max) / T). log2(e) / T is rounded to a float, and `inverse` with it: what is
// computed in float and in double belongs to one T, half a rounding off. Where l - max could
// overflow and matter (huge T), logits are multiplied by 2^-64 first. A T below 2^-126 is taken for
// that.
struct LossScale {
  double temperature;
  float logit_factor;
  float bits_per_unit;  // of a difference
  double inverse;       // 1 / T, per unit of a difference
  float lowest;         // a difference below this weighs nothing

  explicit LossScale(double row_temperature) {
    constexpr double kLog2E = 1.4426950408889634;
    temperature = row_temperature < 0x1p-126 ? 0x1p-126 : row_temperature;
    logit_factor = temperature > 0x1p60 ? 0x1p-64f : 1.0f;
    bits_per_unit = static_cast<float>(kLog2E / (temperature * static_cast<double>(logit_factor)));
    inverse = static_cast<double>(bits_per_unit) / kLog2E;
    lowest = kNoWeightExponent / bits_per_unit;
  }

  bool plain() const { return logit_factor == 1.0f; }

  template <bool kPlain = false>
  Floats difference(Floats logits, float max) const {
    if constexpr (kPlain) return larger(splat(lowest), logits - max);
    return larger(splat(lowest), logits * logit_factor - max * logit_factor);
  }
  Floats weights(Floats differences) const { return exp2_of_product(differences, bits_per_unit); }

  // For what is computed in double alone.
  LossScale exact() const {
    LossScale scale = *this;
    scale.inverse = 1.0 / (temperature * static_cast<double>(logit_factor));
    return scale;
  }

  // x = (max - l) / T of one token, exact.
  double distance(float logit, float max) const {
    const double factor = static_cast<double>(logit_factor);
    return (static_cast<double>(max) * factor - static_cast<double>(logit) * factor) * inverse;
  }
  // The smallest logit of weight >= exp(-x).
  float logit_at(double x, float max) const {
    return float_at_least(static_cast<double>(max) - x * temperature);
  }
};

// Sum of weights below 1, of the tokens at the maximum, and of weight times difference.
struct WeightSums {
  double rest = 0.0;
  double moment = 0.0;
  int64_t at_max = 0;

  // Makes them relative to a maximum that is higher by -`difference`.
  void lower(double difference, double factor) {
    rest += static_cast<double>(at_max);
    at_max = 0;
    moment = (moment + difference * rest) * factor;
    rest *= factor;
  }
  double total() const { return static_cast<double>(at_max) + rest; }
};

inline WeightSums operator+(const WeightSums& a, const WeightSums& b) {
  return {a.rest + b.rest, a.moment + b.moment, a.at_max + b.at_max};
}

struct LossSums {
  RowStatus status = RowStatus::kValid;
  float max = -kInfinity;
  WeightSums all;
  WeightSums before;  // of the tokens that rank before the label
  WeightSums after;   // of the label and the others: a difference would cancel
  double unit = 0.0;  // sum of weights at T = 1
  float block_max[kMaxBlocks];
};

// Some logits of a row, in no order.
template <int kSize>
struct LogitsOf {
  static constexpr int kCapacity = kSize;
  static constexpr int kRoom = kCapacity - kBlock;  // so many always fit

  int size = 0;
  bool complete = true;  // false: there was no room for all
  alignas(64) float logits[kCapacity + kLanes];

  void clear() {
    size = 0;
    complete = true;
  }

  void append(Floats values, Mask mask) { size += write_chosen(logits + size, values, mask); }

  void pad() {
    for (int i = size; i % kLanes != 0; ++i) logits[i] = -kInfinity;
  }

  // Drops the tokens for which keep(logits) is false.
  template <typename Keep>
  void shorten(Keep keep) {
    pad();
    const int before = size;
    size = 0;
    for (int i = 0; i < before; i += kLanes) {
      const Floats values = load(logits + i);
      append(values, keep(values));
    }
    pad();
  }

  // Those from `lowest` on out of some columns, a multiple of kStep, if there is room for all.
  template <typename Element>
  void append_columns(const Element* data, int num_columns, float lowest) {
    complete = complete && size <= kCapacity - num_columns;
    if (!complete) return;
    // Not through `size`, which would have to be read again after every write.
    float* target = logits + size;
    for (int i = 0; i < num_columns; i += 2 * kLanes) {
      const TwoFloats two = load_two(data + i);
      target += write_chosen(target, two.first, at_least(two.first, splat(lowest)));
      target += write_chosen(target, two.second, at_least(two.second, splat(lowest)));
    }
    size = static_cast<int>(target - logits);
  }
};

using LogitList = LogitsOf<24576>;

inline Floats lane_numbers() {
  Floats numbers;
  for (int lane = 0; lane < kLanes; ++lane) numbers[lane] = static_cast<float>(lane);
  return numbers;
}

constexpr int kNoLabel = -1;

// The label in the order of tokens: those of larger logits rank before it, and of equal ones those
// of lower columns.
struct RankOfLabel {
  int label;          // kNoLabel: no token ranks before it
  float at_least;     // the smallest logit that ranks before the label, left of it
  float right_of_it;  // and right of it

  template <typename Element>
  RankOfLabel(const Row<Element>& row, int of_label)
      : label(of_label),
        at_least(label >= 0 ? row[label] : kInfinity),
        right_of_it(label >= 0 ? float_above(row[label]) : kInfinity) {}

  // The smallest logits that rank before the label in the columns from `column` on, which are exact
  // in float32.
  Floats lowest(int column) const {
    const Floats columns = lane_numbers() + static_cast<float>(column);
    return choose(greater(splat(static_cast<float>(label)), columns), splat(at_least),
                  splat(right_of_it));
  }
};

// Vectors that are summed in pairs before they are added to a block's sum: equal weights side by
// side would else be rounded to the same side at every step.
constexpr int kTogether = 4;
static_assert(kStep % (kTogether * kLanes) == 0);

inline Floats sum_of_pairs(const Floats (&values)[kTogether]) {
  return (values[0] + values[1]) + (values[2] + values[3]);
}

// What is added up of one block: the weights, those at T = 1, and, where the block may have such,
// those of tokens before the label and those at the maximum on their own. A NaN ends up in the
// moment after the label. Returns the largest of as many logits from `ahead` on, those of the next
// block, which come from memory meanwhile: with the sums of a block waiting for its own maximum,
// nothing would be done until it is there.
template <bool kPlain, bool kUnit, bool kLabel, bool kMax, typename Element>
float add_block(const Block<Element>& block, const Element* ahead, const LossScale& scale,
                const RankOfLabel& rank, LossSums& sums) {
  constexpr int kSides = kLabel ? 2 : 1;
  constexpr float kLog2E = 1.44269504f;
  Floats rest[kSides] = {};  // after the label, before it
  Floats moment[kSides] = {};
  Floats unit = {};
  Ints at_max[2] = {};
  LargestOf<Element> largest;
  static_assert(largest.kColumns == kTogether * kLanes);
  const bool has_label = rank.label >= block.begin && rank.label < block.begin + block.size;
  Floats lowest = splat(block.begin < rank.label ? rank.at_least : rank.right_of_it);
  for (int i = 0; i < block.padded; i += kTogether * kLanes) {
    largest.add(ahead + i);
    Floats rests[kSides][kTogether];
    Floats moments[kSides][kTogether];
    Floats units[kTogether];
    for (int vector = 0; vector < kTogether; vector += 2) {
      const int begin = i + vector * kLanes;
      // Neighbours of 16 bits are told apart where their order matters only.
      const bool in_order = kLabel && has_label;
      const TwoFloats two =
          in_order ? TwoFloats{load(block.data + begin), load(block.data + begin + kLanes)}
                   : load_two(block.data + begin);
      for (int half = 0; half < 2; ++half) {
        const int at = vector + half;
        const Floats logits = half == 0 ? two.first : two.second;
        const Floats differences = scale.template difference<kPlain>(logits, sums.max);
        const Floats weights = scale.weights(differences);
        const Floats products = weights * differences;
        if constexpr (kUnit) {
          const Floats of_unit = larger(splat(kNoWeightExponent / kLog2E), logits - sums.max);
          units[at] = exp2_of_product(of_unit, kLog2E);
        }
        if constexpr (kLabel) {
          if (in_order) lowest = rank.lowest(block.begin + begin + half * kLanes);
          const Mask before = at_least(logits, lowest);
          const Mask sides[2] = {static_cast<Mask>(~before), before};
          for (int side = 0; side < 2; ++side) {
            Mask not_max = sides[side];
            if constexpr (kMax) {
              count_where(sides[side] & equal(logits, splat(sums.max)), at_max[side]);
              not_max = not_max & greater(splat(sums.max), logits);
            }
            moments[side][at] = choose(sides[side], products, Floats{});
            rests[side][at] = choose(not_max, weights, Floats{});
          }
        } else {
          rests[0][at] = weights;
          moments[0][at] = products;
        }
      }
    }
    for (int side = 0; side < kSides; ++side) {
      rest[side] += sum_of_pairs(rests[side]);
      moment[side] += sum_of_pairs(moments[side]);
    }
    if constexpr (kUnit) unit += sum_of_pairs(units);
  }
  if constexpr (kUnit) sums.unit += static_cast<double>(sum_of_lanes(unit));
  WeightSums* const sides[2] = {&sums.after, &sums.before};
  for (int side = 0; side < kSides; ++side) {
    sides[side]->rest += static_cast<double>(sum_of_lanes(rest[side]));
    sides[side]->moment += static_cast<double>(sum_of_lanes(moment[side]));
    for (int lane = 0; kMax && lane < kLanes; ++lane) sides[side]->at_max += at_max[side][lane];
  }
  return largest.value();
}

// Tokens lighter than this share of a row are never told apart: their order among themselves does
// not matter, and what a decay over their mass leaves of each differs from the mean by less than
// steepness * kLight / 2.
constexpr double kLight = 0x1p-16;

// The lightest logit of at least a share of the row.
inline float lightest_logit(const LossScale& scale, const LossSums& sums, double share) {
  return scale.logit_at(-logarithm(share * sums.all.total()), sums.max);
}

// Whether kStep columns have a logit from `lowest` on.
template <typename Element>
bool reaches(const Element* data, float lowest) {
  Floats largest = splat(-kInfinity);
  for (int i = 0; i < kStep; i += 2 * kLanes) {
    const TwoFloats two = load_two(data + i);
    largest = larger(largest, larger(two.first, two.second));
  }
  return bits_of(at_least(largest, splat(lowest))) != 0;
}

// Lists the tokens from `lowest` on, out of the blocks that have some. Where those have few, the
// columns that reach it are noted first and listed later: a branch would often be mispredicted.
template <typename Element>
void list_row(const Row<Element>& row, const LossSums& sums, float lowest, LogitList& list) {
  constexpr int kParts = kBlock / kStep;
  constexpr int kMostNoted = 64;  // still in the first-level cache when they are listed
  const Element* noted[kMostNoted + kParts];
  int num_noted = 0;
  const auto list_noted = [&] {
    for (int i = 0; i < num_noted; ++i) list.append_columns(noted[i], kStep, lowest);
    num_noted = 0;
  };
  list.clear();
  bool few = true;  // like the block before
  for (int number = 0; number < row.num_blocks() && list.complete; ++number) {
    if (sums.block_max[number] < lowest) continue;
    const Block<Element> block = row.block(number);
    if (few) {
      const int before = num_noted;
      for (int i = 0; i < block.padded; i += kStep) {
        noted[num_noted] = block.data + i;
        num_noted += reaches(block.data + i, lowest) ? 1 : 0;
      }
      few = num_noted - before <= kParts / 2;
      if (num_noted >= kMostNoted) list_noted();
    } else {
      const int before = list.size;
      list.append_columns(block.data, block.padded, lowest);
      few = list.size - before < kParts;
    }
  }
  list_noted();
  list.pad();
}

// One read.
template <bool kPlain, bool kUnit, typename Element>
void sum_blocks(const Row<Element>& row, const LossScale& scale, int label, LossSums& sums) {
  const RankOfLabel rank(row, label);
  bool nan = false;
  float max = block_max(row.block(0));
  for (int number = 0; number < row.num_blocks(); ++number) {
    const Block<Element> block = row.block(number);
    sums.block_max[number] = max;
    if (max > sums.max) {
      if (sums.max > -kInfinity) {
        const double difference = -scale.distance(sums.max, max) / scale.inverse;
        const double factor = exponential(difference * scale.inverse);
        sums.before.lower(difference, factor);
        sums.after.lower(difference, factor);
        sums.unit *= exponential(static_cast<double>(sums.max) - static_cast<double>(max));
      }
      sums.max = max;
    }
    const bool has_next = number + 1 < row.num_blocks();
    const Block<Element> next = has_next ? row.block(number + 1) : block;
    const bool looks_ahead = next.padded == block.padded && sums.max > -kInfinity;
    const Element* const ahead = looks_ahead ? next.data : block.data;
    float next_max = -kInfinity;
    if (!(sums.max > -kInfinity)) {
      nan |= any_nan(block);
    } else if (max == sums.max) {
      next_max = add_block<kPlain, kUnit, true, true>(block, ahead, scale, rank, sums);
    } else if (max >= rank.at_least) {
      next_max = add_block<kPlain, kUnit, true, false>(block, ahead, scale, rank, sums);
    } else {
      next_max = add_block<kPlain, kUnit, false, false>(block, ahead, scale, rank, sums);
    }
    max = looks_ahead ? next_max : block_max(next);
  }
  sums.all = sums.before + sums.after;
  // A sum of products is NaN where a logit is.
  nan |= sums.all.moment != sums.all.moment;
  if (nan || !(sums.max < kInfinity) || sums.max == -kInfinity) sums.status = find_fault(row);
}

enum class UnitSum { kNo, kWherePlain };

// Sums of a row at the scale's temperature, and at T = 1 where that is asked for and differs.
template <typename Element>
void sum_row(const Row<Element>& row, const LossScale& scale, int label, UnitSum unit,
             LossSums& sums) {
  sums.status = RowStatus::kValid;
  sums.max = -kInfinity;
  sums.before = sums.after = {};
  sums.unit = 0.0;
  if (!scale.plain()) {
    sum_blocks<false, false>(row, scale, label, sums);
  } else if (unit == UnitSum::kNo || scale.temperature == 1.0) {
    sum_blocks<true, false>(row, scale, label, sums);
  } else {
    sum_blocks<true, true>(row, scale, label, sums);
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
