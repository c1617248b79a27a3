// The four features of softmax(l / (T + 1e-8)) that the top-p head reads, for a range of rows:
// largest probability, entropy, unbiased variance over the vocabulary, sum of the five largest.
#pragma once

#include <cmath>

#include "autodeco/distribution_stats.h"
#include "autodeco/filters.h"
#include "row_summary.h"
#include "share_of_epsilon.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// The largest logits seen, in descending order.
struct LargestLogits {
  float logits[kTopCount];

  LargestLogits() {
    for (float& logit : logits) logit = -kInfinity;
  }

  void insert(float logit) {
    int slot = kTopCount - 1;
    for (; slot > 0 && logits[slot - 1] < logit; --slot) logits[slot] = logits[slot - 1];
    logits[slot] = logit;
  }

  template <typename Element>
  void insert_block(const Block<Element>& block) {
    for (int i = 0; i < block.padded; i += kLanes) {
      const Floats values = load(block.data + i);
      uint32_t larger_bits = bits_of(greater(values, splat(logits[kTopCount - 1])));
      for (; larger_bits != 0; larger_bits &= larger_bits - 1) {
        const float logit = values[__builtin_ctz(larger_bits)];
        if (logit > logits[kTopCount - 1]) insert(logit);
      }
    }
  }
};

// Below this exponent no weight matters, and above it no square of one is subnormal.
constexpr float kLeastExponent = -60.0f;

// What the first read sums up over a block, of weights w relative to a reference.
struct BlockMoments {
  float max;
  float excess;    // of w - center: near their mean, little of it and its squares is rounded off
  float square;    // of (w - center)^2
  float exponent;  // of w log2(w)
};

template <bool kPlain, bool kPadded, typename Element>
BlockMoments block_moments(const Block<Element>& block, const Scaling& scaling, float reference,
                           float center) {
  constexpr int kChains = 2;
  Floats lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<float>(lane);
  Floats largest[kChains] = {splat(-kInfinity), splat(-kInfinity)};
  Floats excess[kChains] = {};
  Floats square[kChains] = {};
  Floats exponent[kChains] = {};
  for (int i = 0; i < block.padded; i += kChains * kLanes) {
    // Padding is no token: its place has to be known.
    const TwoFloats two = kPadded ? TwoFloats{load(block.data + i), load(block.data + i + kLanes)}
                                  : load_two(block.data + i);
    for (int chain = 0; chain < kChains; ++chain) {
      const Floats logits = chain == 0 ? two.first : two.second;
      largest[chain] = larger(largest[chain], logits);
      const Floats x = larger(splat(kLeastExponent), scaling.exponents<kPlain>(logits, reference));
      const Floats w = exp2_in_range(x);
      exponent[chain] += w * x;
      Floats more = w - center;
      if constexpr (kPadded) {
        const float left = static_cast<float>(block.size - i - chain * kLanes);
        more = lanes < left ? more : Floats{};
      }
      excess[chain] += more;
      square[chain] += more * more;
    }
  }
  return {largest_lane(larger(largest[0], largest[1])), sum_of_lanes(excess[0] + excess[1]),
          sum_of_lanes(square[0] + square[1]), sum_of_lanes(exponent[0] + exponent[1])};
}

// Of tokens' weights w relative to a reference.
struct Moments {
  double count = 0.0;
  double mean = 0.0;
  double square = 0.0;    // sum of (w - mean)^2
  double exponent = 0.0;  // sum of w log2(w)

  double weight() const { return mean * count; }

  void add(const BlockMoments& block, double size, double center) {
    const double excess = static_cast<double>(block.excess) / size;
    const double step = center + excess - mean;
    const double share = size / (count + size);
    square +=
        static_cast<double>(block.square) - excess * excess * size + step * step * count * share;
    mean += step * share;
    count += size;
    exponent += static_cast<double>(block.exponent);
  }

  // Makes them relative to what is 2^bits times the reference.
  void raise_reference(double bits) {
    const double scale = std::exp2(-bits);
    exponent = (exponent - bits * weight()) * scale;
    mean *= scale;
    square *= scale * scale;
  }
};

// Those of a row, relative to its maximum.
template <typename Element>
Moments row_moments(const Row<Element>& row, const Scaling& scaling, RowSummary& summary) {
  Moments moments;
  float reference = -kInfinity;
  float center = 0.0f;  // the mean of the block before
  float center_reference = -kInfinity;
  with_plainness(scaling, [&](auto plain) {
    read_blocks(row, summary, [&](int, const Block<Element>& block, float& max) {
      const float reference_before = reference;
      const auto read = [&](float relative_to, float about) {
        return block.size == block.padded
                   ? block_moments<plain(), false>(block, scaling, relative_to, about)
                   : block_moments<plain(), true>(block, scaling, relative_to, about);
      };
      const BlockMoments found = read_relative(block, scaling, reference, [&](float relative_to) {
        if (relative_to != center_reference) {
          center = read(relative_to, 0.0f).excess / static_cast<float>(block.size);
          center_reference = relative_to;
        }
        return read(relative_to, center);
      });
      max = found.max;
      if (reference > reference_before && reference_before > -kInfinity) {
        moments.raise_reference(scaling.precise_exponent(reference, reference_before));
      }
      moments.add(found, static_cast<double>(block.size), static_cast<double>(center));
      center += found.excess / static_cast<float>(block.size);
      return found.excess != found.excess;
    });
  });
  if (summary.status == RowStatus::kValid) {
    moments.raise_reference(scaling.precise_exponent(summary.max, reference));
  }
  return moments;
}

template <bool kPlain, typename Element>
float block_shares_of_epsilon(const Block<Element>& block, const Scaling& scaling, float max,
                              float shift) {
  static const ShareOfEpsilon share_of_epsilon;
  constexpr int kChains = 2;
  Floats shares[kChains] = {};
  for (int i = 0; i < block.padded; i += kChains * kLanes) {
    const TwoFloats logits = load_two(block.data + i);
    for (int chain = 0; chain < kChains; ++chain) {
      const Floats x = scaling.exponents<kPlain>(chain == 0 ? logits.first : logits.second, max);
      shares[chain] += share_of_epsilon(x + shift);
    }
  }
  return sum_of_lanes(shares[0] + shares[1]);
}

// The sum of q ln(1 + epsilon / q): the second read.
template <typename Element>
double epsilon_part_of_entropy(const Row<Element>& row, const Scaling& scaling,
                               const RowSummary& summary, double total) {
  // log2 of q / epsilon is log2 of the weight plus this.
  const float shift = static_cast<float>(-std::log2(total * static_cast<double>(kStatsEpsilon)));
  // A share of 4e-6 of epsilon or less: 4e-8 for all columns that a row can have.
  constexpr float kNegligible = -22.0f;
  double shares = 0.0;
  with_plainness(scaling, [&](auto plain) {
    for (int number = 0; number < row.num_blocks(); ++number) {
      const float exponent =
          scaling.exponents<plain()>(splat(summary.block_max[number]), summary.max)[0];
      if (!(exponent + shift > kNegligible)) continue;
      shares += static_cast<double>(
          block_shares_of_epsilon<plain()>(row.block(number), scaling, summary.max, shift));
    }
  });
  return shares * static_cast<double>(kStatsEpsilon);
}

// The weights of the five largest logits.
template <typename Element>
double sum_of_largest(const Row<Element>& row, const Scaling& scaling, const RowSummary& summary) {
  // The five blocks of the largest maxima hold them: no other holds more than the fifth of these.
  LargestLogits maxima;
  for (int number = 0; number < row.num_blocks(); ++number) {
    if (summary.block_max[number] > maxima.logits[kTopCount - 1]) {
      maxima.insert(summary.block_max[number]);
    }
  }
  LargestLogits largest;
  for (int number = 0; number < row.num_blocks(); ++number) {
    const float max = summary.block_max[number];
    if (max >= maxima.logits[kTopCount - 1] && max > largest.logits[kTopCount - 1]) {
      largest.insert_block(row.block(number));
    }
  }
  double sum = 0.0;
  for (const float logit : largest.logits) {
    if (logit == -kInfinity) continue;
    sum += static_cast<double>(scaling.weights(splat(logit), summary.max)[0]);
  }
  return sum;
}

// Writes the four features to `output`, NaN where the row is not valid.
template <typename Element>
RowStatus stats_of_row(const Row<Element>& row, float temperature, float* output) {
  const RowStatus temperature_fault = temperature_status(temperature);
  const Scaling scaling(temperature + kStatsEpsilon);
  RowSummary summary;
  Moments moments;
  if (temperature_fault == RowStatus::kValid) {
    moments = row_moments(row, scaling, summary);
  } else {
    summarize(row, nullptr, summary);
  }
  // The logits first: where they are NaN, the temperature that a head made of them is too.
  const RowStatus status = summary.status == RowStatus::kValid ? temperature_fault : summary.status;
  if (status != RowStatus::kValid) {
    for (int i = 0; i < kNumStats; ++i) output[i] = kNaN;
    return status;
  }
  // Not less for being rounded: no probability is above 1.
  const double largest = sum_of_largest(row, scaling, summary);
  const double total = moments.weight() > largest ? moments.weight() : largest;
  // -sum q ln(q + epsilon), where ln q = ln(2) log2(w) - ln(total).
  constexpr double kLn2 = 0.69314718055994531;
  const double entropy = std::log(total) - kLn2 * moments.exponent / total -
                         epsilon_part_of_entropy(row, scaling, summary, total);
  output[0] = static_cast<float>(1.0 / total);
  output[1] = static_cast<float>(entropy);
  // That of a single number is not defined; we call it 0.
  output[2] = row.vocab() == 1 ? 0.0f
                               : static_cast<float>(moments.square / (total * total) /
                                                    static_cast<double>(row.vocab() - 1));
  output[3] = static_cast<float>(largest / total);
  return status;
}

void distribution_stats_rows(const DistributionStatsArguments& arguments, int64_t begin,
                             int64_t end) {
  for (int64_t row_index = begin; row_index < end; ++row_index) {
    with_row(arguments.dtype, arguments.logits, row_offset(arguments.layout, row_index),
             arguments.layout.vocab, [&](const auto& row) {
               arguments.status[row_index] =
                   stats_of_row(row, value_at(arguments.temperature, row_index),
                                arguments.output + row_index * kNumStats);
             });
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
