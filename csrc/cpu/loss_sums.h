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

// Weights exp((l - max) / T). Their logarithm is taken to base 2 in two floats: rounding log2(e) /
// T to one would shift all light tokens the same way. Where l - max could overflow and matter (huge
// T), logits are multiplied by 2^-64 first. A T below 2^-126 is taken for that.
struct LossScale {
  double temperature;
  double inverse;  // 1 / T, per unit of a difference
  float logit_factor;
  float high;
  float low;
  float lowest;  // a difference below this weighs nothing

  explicit LossScale(double row_temperature) {
    temperature = row_temperature < 0x1p-126 ? 0x1p-126 : row_temperature;
    logit_factor = temperature > 0x1p60 ? 0x1p-64f : 1.0f;
    inverse = 1.0 / (temperature * static_cast<double>(logit_factor));
    const double bits = 1.4426950408889634 * inverse;
    high = static_cast<float>(bits);
    low = static_cast<float>(bits - static_cast<double>(high));
    lowest = kNoWeightExponent / high;
  }

  bool plain() const { return logit_factor == 1.0f; }

  Floats difference(Floats logits, float max) const {
    return larger(splat(lowest), logits * logit_factor - max * logit_factor);
  }
  Floats weights(Floats differences) const { return exp2_of_product(differences, high, low); }

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

struct LossSums {
  RowStatus status = RowStatus::kValid;
  float max = -kInfinity;
  WeightSums all;
  WeightSums before;  // of the tokens that rank before the label
  double unit = 0.0;  // sum of weights at T = 1
  float block_max[kMaxBlocks];
};

// Some logits of a row, in its order.
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

  void append(Floats values, Mask mask) {
    uint32_t chosen = bits_of(mask);
#if defined(__AVX512F__)
    // Compressed in a register: compressing stores are slow on some processors.
    _mm512_storeu_ps(logits + size,
                     _mm512_maskz_compress_ps(mask, reinterpret_cast<__m512>(values)));
    size += __builtin_popcount(chosen);
#else
    for (; chosen != 0; chosen &= chosen - 1) logits[size++] = values[__builtin_ctz(chosen)];
#endif
  }

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

  template <typename Element>
  void append_block(const Block<Element>& block, float lowest) {
    for (int i = 0; i < block.padded; i += kLanes) {
      const Floats values = load(block.data + i);
      append(values, at_least(values, splat(lowest)));
    }
  }
};

using LogitList = LogitsOf<24576>;

inline Floats lane_numbers() {
  Floats numbers;
  for (int lane = 0; lane < kLanes; ++lane) numbers[lane] = static_cast<float>(lane);
  return numbers;
}

// Which of the tokens from `column` on rank before the label. Columns are exact in float32.
inline Mask ranks_before(Floats logits, int column, int label, float label_logit) {
  const Floats columns = lane_numbers() + static_cast<float>(column);
  return greater(logits, splat(label_logit)) |
         (equal(logits, splat(label_logit)) & greater(splat(static_cast<float>(label)), columns));
}

// What is added up of one block: always the weights, and those at T = 1, those of tokens before
// the label, and tokens at the maximum on their own, where the block may have such.
template <bool kUnit, bool kLabel, bool kMax, typename Element>
void add_block(const Block<Element>& block, const LossScale& scale, int label, float label_logit,
               LossSums& sums) {
  constexpr int kChains = 2;
  constexpr float kLog2E = 1.44269504f;
  Floats rest[kChains] = {};
  Floats moment[kChains] = {};
  Floats unit[kChains] = {};
  Floats rest_before[kChains] = {};
  Floats moment_before[kChains] = {};
  Ints at_max = {};
  Ints at_max_before = {};
  for (int i = 0; i < block.padded; i += kChains * kLanes) {
    for (int chain = 0; chain < kChains; ++chain) {
      const int column = i + chain * kLanes;
      const Floats logits = load(block.data + column);
      const Floats differences = scale.difference(logits, sums.max);
      const Floats weights = scale.weights(differences);
      const Floats moments = weights * differences;
      moment[chain] += moments;
      if constexpr (kUnit) unit[chain] += exp2_nonpositive((logits - sums.max) * kLog2E);
      if constexpr (kMax) {
        const Mask is_max = equal(logits, splat(sums.max));
        add_where(greater(splat(sums.max), logits), rest[chain], weights);
        count_where(is_max, at_max);
      } else {
        rest[chain] += weights;
      }
      if constexpr (kLabel) {
        const Mask before = ranks_before(logits, block.begin + column, label, label_logit);
        add_where(before, moment_before[chain], moments);
        if constexpr (kMax) {
          const Mask is_max = equal(logits, splat(sums.max));
          add_where(before & greater(splat(sums.max), logits), rest_before[chain], weights);
          count_where(before & is_max, at_max_before);
        } else {
          add_where(before, rest_before[chain], weights);
        }
      }
    }
  }
  const auto sum = [](const Floats* chains) {
    return static_cast<double>(sum_of_lanes(chains[0] + chains[1]));
  };
  sums.all.rest += sum(rest);
  sums.all.moment += sum(moment);
  if constexpr (kUnit) sums.unit += sum(unit);
  if constexpr (kLabel) {
    sums.before.rest += sum(rest_before);
    sums.before.moment += sum(moment_before);
  }
  if constexpr (kMax) {
    for (int lane = 0; lane < kLanes; ++lane) {
      sums.all.at_max += at_max[lane];
      sums.before.at_max += at_max_before[lane];
    }
  }
}

// Tokens lighter than this share of a row are never told apart: their order among themselves does
// not matter, and what a decay over their mass leaves of each differs from the mean by less than
// steepness * kLight / 2.
constexpr double kLight = 0x1p-16;

// Lists the tokens from `lowest` on.
template <typename Element>
void list_row(const Row<Element>& row, const LossSums& sums, float lowest, LogitList& list) {
  list.clear();
  for (int number = 0; number < row.num_blocks() && list.complete; ++number) {
    if (sums.block_max[number] < lowest) continue;
    list.complete = list.size <= LogitList::kRoom;
    if (list.complete) list.append_block(row.block(number), lowest);
  }
}

// Sums of a row at the scale's temperature; lists in `list`, where that is not null, a superset of
// the tokens of probability >= kLight. One read. Without a label (-1) no token ranks before it.
template <bool kUnit, typename Element>
void sum_row(const Row<Element>& row, const LossScale& scale, int label, LogitList* list,
             LossSums& sums) {
  sums = {};
  if (list != nullptr) list->clear();
  const float label_logit = label >= 0 ? row[label] : kInfinity;
  bool nan = false;
  // The list is made for the sum that is to be expected if no later block weighs less than the
  // lightest one so far; should it turn out smaller, the list lacks tokens.
  double lightest_block = 0.0;
  double listed_total = 0.0;
  float threshold = -kInfinity;
  float highest_threshold = -kInfinity;
  const auto raise_threshold = [&](double total) {
    const float lowest = scale.logit_at(-logarithm(kLight * total), sums.max);
    highest_threshold = lowest > highest_threshold ? lowest : highest_threshold;
    return lowest;
  };
  for (int number = 0; number < row.num_blocks(); ++number) {
    const Block<Element> block = row.block(number);
    const float max = block_max(block);
    sums.block_max[number] = max;
    if (max > sums.max) {
      if (sums.max > -kInfinity) {
        const double difference = -scale.distance(sums.max, max) / scale.inverse;
        const double factor = exponential(difference * scale.inverse);
        sums.all.lower(difference, factor);
        sums.before.lower(difference, factor);
        sums.unit *= exponential(static_cast<double>(sums.max) - static_cast<double>(max));
        lightest_block *= factor;
      }
      sums.max = max;
      listed_total = 0.0;
    }
    if (!(sums.max > -kInfinity)) {
      nan |= any_nan(block);
      continue;
    }
    const double total_before = sums.all.total();
    if (max == sums.max) {
      add_block<kUnit, true, true>(block, scale, label, label_logit, sums);
    } else if (max >= label_logit) {
      add_block<kUnit, true, false>(block, scale, label, label_logit, sums);
    } else {
      add_block<kUnit, false, false>(block, scale, label, label_logit, sums);
    }
    if (list == nullptr || !list->complete) continue;
    const double of_block = sums.all.total() - total_before;
    if (number == 0 || of_block < lightest_block) lightest_block = of_block;
    // A few blocks may each have a heavy token; hardly so many.
    const int expected = number < 8 ? 0 : row.num_blocks() - number - 1;
    const double total = sums.all.total() + 0.6 * lightest_block * expected;
    if (total > 1.25 * listed_total) {
      threshold = raise_threshold(total);
      listed_total = total;
    }
    if (!(max >= threshold)) continue;
    if (list->size > LogitList::kRoom) {
      threshold = raise_threshold(total);
      listed_total = total;
      list->shorten([&](Floats logits) { return at_least(logits, splat(threshold)); });
      list->complete = list->size <= LogitList::kRoom - 2 * kBlock;
      if (!list->complete) continue;
    }
    list->append_block(block, threshold);
  }
  if (list != nullptr && list->complete) {
    const float lowest = scale.logit_at(-logarithm(kLight * sums.all.total()), sums.max);
    if (highest_threshold > lowest) list_row(row, sums, lowest, *list);
    list->pad();
  }
  // A sum of products is NaN where a logit is.
  nan |= sums.all.moment != sums.all.moment;
  if (nan || !(sums.max < kInfinity) || sums.max == -kInfinity) sums.status = find_fault(row);
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
