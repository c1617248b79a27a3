// The four features of softmax(l / (T + 1e-8)) that the top-p head reads, for a range of rows:
// largest probability, entropy, unbiased variance over the vocabulary, sum of the five largest.
#pragma once

#include <cmath>
#include <limits>

#include "autodeco/distribution_stats.h"
#include "autodeco/filters.h"
#include "row_summary.h"

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
  float weight;
  float exponent;  // of w log2(w)
  float square;    // of w^2
};

template <bool kPlain, typename Element>
BlockMoments block_moments(const Block<Element>& block, const Scaling& scaling, float reference) {
  constexpr int kChains = 2;
  Floats largest[kChains] = {splat(-kInfinity), splat(-kInfinity)};
  Floats weight[kChains] = {};
  Floats exponent[kChains] = {};
  Floats square[kChains] = {};
  const auto add = [&](int chain, Floats logits) {
    largest[chain] = larger(largest[chain], logits);
    const Floats x = larger(splat(kLeastExponent), scaling.exponents<kPlain>(logits, reference));
    const Floats w = exp2_in_range(x);
    weight[chain] += w;
    exponent[chain] += w * x;
    square[chain] += w * w;
  };
  for (int i = 0; i < block.padded; i += kChains * kLanes) {
    const TwoFloats logits = load_two(block.data + i);
    add(0, logits.first);
    add(1, logits.second);
  }
  return {largest_lane(larger(largest[0], largest[1])), sum_of_lanes(weight[0] + weight[1]),
          sum_of_lanes(exponent[0] + exponent[1]), sum_of_lanes(square[0] + square[1])};
}

// Sums over a row, of weights w relative to its maximum.
struct Moments {
  double weight = 0.0;
  double exponent = 0.0;  // of w log2(w)
  double square = 0.0;    // of w^2
};

template <typename Element>
Moments row_moments(const Row<Element>& row, const Scaling& scaling, RowSummary& summary) {
  BlockMoments of_block[kMaxBlocks];
  float references[kMaxBlocks];
  float reference = -kInfinity;
  with_plainness(scaling, [&](auto plain) {
    read_blocks(row, summary, [&](int number, const Block<Element>& block, float& max) {
      of_block[number] = read_relative(block, scaling, reference, [&](float relative_to) {
        return block_moments<plain()>(block, scaling, relative_to);
      });
      max = of_block[number].max;
      references[number] = reference;
      return of_block[number].weight != of_block[number].weight;
    });
  });
  Moments moments;
  if (summary.status != RowStatus::kValid) return moments;
  for (int number = 0; number < row.num_blocks(); ++number) {
    const Floats max = splat(summary.block_max[number]);
    if (!(scaling.exponents(max, references[number])[0] > kLeastExponent)) continue;
    const Floats block_reference = splat(references[number]);
    const double exponent = static_cast<double>(scaling.exponents(block_reference, summary.max)[0]);
    const double weight = static_cast<double>(scaling.weights(block_reference, summary.max)[0]);
    const BlockMoments& block = of_block[number];
    moments.weight += static_cast<double>(block.weight) * weight;
    // Where the reference is 2^-126 or less, which may be infinitely less, this is 0.
    if (exponent > -126.0) {
      moments.exponent +=
          (static_cast<double>(block.exponent) + exponent * static_cast<double>(block.weight)) *
          weight;
    }
    moments.square += static_cast<double>(block.square) * weight * weight;
  }
  return moments;
}

// u ln(1 + 1 / u) for u = 2^t and t >= -100, within 2e-4. With u = q / epsilon, epsilon times this
// is q ln(1 + epsilon / q): what epsilon adds to a term q ln q of the entropy.
inline Floats share_of_epsilon(Floats t) {
  constexpr float kLn2 = 0.693147181f;
  const Floats minus_magnitude =
      reinterpret_cast<Floats>(reinterpret_cast<Ints>(t) | std::numeric_limits<int32_t>::min());
  const Floats s = exp2_roughly(minus_magnitude);  // the smaller of u and 1 / u
  // Minimax fit of ln(1 + s) / s on [0, 1], error below 5e-5.
  Floats p = splat(0x1.5bd3f2p-5f);
  p = p * s - 0x1.46f996p-3f;
  p = p * s + 0x1.3b1510p-2f;
  p = p * s - 0x1.fd3148p-2f;
  p = p * s + 0x1.fff9bap-1f;
  return t > 0.0f ? p : s * (p * s - minus_magnitude * kLn2);
}

template <bool kPlain, typename Element>
float block_shares_of_epsilon(const Block<Element>& block, const Scaling& scaling, float max,
                              float shift) {
  constexpr int kChains = 2;
  Floats shares[kChains] = {};
  for (int i = 0; i < block.padded; i += kChains * kLanes) {
    const TwoFloats logits = load_two(block.data + i);
    for (int chain = 0; chain < kChains; ++chain) {
      const Floats x = scaling.exponents<kPlain>(chain == 0 ? logits.first : logits.second, max);
      shares[chain] += share_of_epsilon(larger(splat(-100.0f), x + shift));
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

// The sum of (q - 1 / V)^2, where that of q^2 would lose it to rounding.
template <typename Element>
double sum_of_deviations(const Row<Element>& row, const Scaling& scaling, const RowSummary& summary,
                         double total) {
  const float inverse = static_cast<float>(1.0 / total);
  const float mean = static_cast<float>(1.0 / static_cast<double>(row.vocab()));
  double sum = 0.0;
  for (int number = 0; number < row.num_blocks(); ++number) {
    const Block<Element> block = row.block(number);
    Floats squares = {};
    for (int i = 0; i < block.padded; i += kLanes) {
      Floats deviation = scaling.weights(load(block.data + i), summary.max) * inverse - mean;
      // Padding is no token.
      for (int lane = kLanes - 1; lane >= 0 && i + lane >= block.size; --lane) {
        deviation[lane] = 0.0f;
      }
      squares += deviation * deviation;
    }
    sum += static_cast<double>(sum_of_lanes(squares));
  }
  return sum;
}

template <typename Element>
double variance(const Row<Element>& row, const Scaling& scaling, const RowSummary& summary,
                const Moments& moments) {
  // That of a single number is not defined; we call it 0.
  if (row.vocab() == 1) return 0.0;
  const double columns = static_cast<double>(row.vocab());
  const double square = moments.square / (moments.weight * moments.weight);
  const double deviations = square * columns > 1.0625
                                ? square - 1.0 / columns
                                : sum_of_deviations(row, scaling, summary, moments.weight);
  return deviations / (columns - 1.0);
}

// The weights of the five largest logits.
template <typename Element>
double sum_of_largest(const Row<Element>& row, const Scaling& scaling, const RowSummary& summary) {
  LargestLogits largest;
  for (int number = 0; number < row.num_blocks(); ++number) {
    if (summary.block_max[number] > largest.logits[kTopCount - 1]) {
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
  const double total = moments.weight;
  // -sum q ln(q + epsilon), where ln q = ln(2) log2(w) - ln(total).
  constexpr double kLn2 = 0.69314718055994531;
  const double entropy = std::log(total) - kLn2 * moments.exponent / total -
                         epsilon_part_of_entropy(row, scaling, summary, total);
  const double share = sum_of_largest(row, scaling, summary) / total;
  output[0] = static_cast<float>(1.0 / total);
  output[1] = static_cast<float>(entropy);
  output[2] = static_cast<float>(variance(row, scaling, summary, moments));
  output[3] = static_cast<float>(share < 1.0 ? share : 1.0);
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
