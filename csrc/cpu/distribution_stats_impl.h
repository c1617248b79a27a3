// The four features of softmax(l / (T + 1e-8)) that the top-p head reads, for a range of rows:
// largest probability, entropy, unbiased variance over the vocabulary, sum of the five largest.
#pragma once

#include <cmath>

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

// ln(q + epsilon) where ln q is known: the logarithm of the larger of the two, and ln(1 + s) of
// their ratio s by a minimax fit, whose error of 5e-5 matters only where q is of the size of
// epsilon.
inline Floats log_with_epsilon(Floats q, Floats log_q) {
  constexpr float kLogEpsilon = -18.420681f;
  const Floats smaller = -larger(-q, splat(-kStatsEpsilon));
  const Floats s = smaller / larger(q, splat(kStatsEpsilon));
  Floats p = splat(0x1.5bd3a4p-5f);
  p = p * s - 0x1.46f970p-3f;
  p = p * s + 0x1.3b1504p-2f;
  p = p * s - 0x1.fd3146p-2f;
  p = p * s + 0x1.fff9bap-1f;
  return larger(log_q, splat(kLogEpsilon)) + p * s;
}

// What turns logits into probabilities.
struct Normaliser {
  float max;
  float inverse;  // of the sum of weights
  float log_inverse;
  float mean;  // 1 / V

  Normaliser(float row_max, double total, int vocab)
      : max(row_max),
        inverse(static_cast<float>(1.0 / total)),
        log_inverse(static_cast<float>(-std::log(total))),
        mean(static_cast<float>(1.0 / static_cast<double>(vocab))) {}
};

struct Moments {
  double entropy = 0.0;
  double squares = 0.0;  // of q - 1 / V
};

template <bool kPlain, typename Element>
void add_moments(const Block<Element>& block, const Scaling& scaling, const Normaliser& normaliser,
                 Moments& moments) {
  constexpr float kLn2 = 0.693147181f;
  constexpr int kChains = 2;
  Floats entropy[kChains] = {};
  Floats squares[kChains] = {};
  for (int i = 0; i < block.padded; i += kChains * kLanes) {
    for (int chain = 0; chain < kChains; ++chain) {
      const int column = i + chain * kLanes;
      const Floats logits = load(block.data + column);
      const Floats exponents = scaling.exponents<kPlain>(logits, normaliser.max);
      const Floats q = exp2_nonpositive(exponents) * normaliser.inverse;
      entropy[chain] += q * log_with_epsilon(q, exponents * kLn2 + normaliser.log_inverse);
      Floats deviation = q - normaliser.mean;
      // Padding is no token.
      for (int lane = kLanes - 1; lane >= 0 && column + lane >= block.size; --lane) {
        deviation[lane] = 0.0f;
      }
      squares[chain] += deviation * deviation;
    }
  }
  moments.entropy += static_cast<double>(sum_of_lanes(entropy[0] + entropy[1]));
  moments.squares += static_cast<double>(sum_of_lanes(squares[0] + squares[1]));
}

// Writes the four features to `output`, NaN where the row is not valid.
template <typename Element>
RowStatus stats_of_row(const Row<Element>& row, float temperature, float* output) {
  const RowStatus temperature_fault = temperature_status(temperature);
  const Scaling scaling(temperature + kStatsEpsilon);
  RowSummary summary;
  summarize(row, temperature_fault == RowStatus::kValid ? &scaling : nullptr, summary);
  // The logits first: where they are NaN, the temperature that a head made of them is too.
  const RowStatus status = summary.status == RowStatus::kValid ? temperature_fault : summary.status;
  if (status != RowStatus::kValid) {
    for (int i = 0; i < kNumStats; ++i) output[i] = kNaN;
    return status;
  }
  const double total = static_cast<double>(summary.mass) / kMassScale;
  const Normaliser normaliser(summary.max, total, row.vocab());
  LargestLogits largest;
  Moments moments;
  with_plainness(scaling, [&](auto plain) {
    for (int number = 0; number < row.num_blocks(); ++number) {
      const Block<Element> block = row.block(number);
      if (summary.block_max[number] > largest.logits[kTopCount - 1]) largest.insert_block(block);
      add_moments<plain()>(block, scaling, normaliser, moments);
    }
  });
  double largest_sum = 0.0;
  for (const float logit : largest.logits) {
    if (logit == -kInfinity) continue;
    largest_sum += static_cast<double>(scaling.weights(splat(logit), summary.max)[0]);
  }
  const double share = largest_sum / total;
  output[0] = normaliser.inverse;
  output[1] = static_cast<float>(-moments.entropy);
  // The variance of a single number is not defined; we call it 0.
  output[2] = row.vocab() > 1
                  ? static_cast<float>(moments.squares / static_cast<double>(row.vocab() - 1))
                  : 0.0f;
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
