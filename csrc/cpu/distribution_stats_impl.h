// The four features of softmax(l / (T + 1e-8)) that the top-p head reads, for a range of rows:
// largest probability, entropy, unbiased variance over the vocabulary, sum of the five largest.
#pragma once

#include "autodeco/distribution_stats.h"
#include "exp_log.h"
#include "row_scan.h"

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

  void insert_block(const Block& block) {
    for (int i = 0; i < block.size; ++i) {
      if (block.logits[i] > logits[kTopCount - 1]) insert(block.logits[i]);
    }
  }
};

// Sums in double, in an order fixed by the block alone, so that results do not depend on threads.
struct DoubleLanes {
  double lane[kLanes] = {};

  void add(const float* values, int padded) {
    for (int i = 0; i < padded; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) lane[j] += static_cast<double>(values[i + j]);
    }
  }

  double total() const {
    double sum = 0.0;
    for (const double value : lane) sum += value;
    return sum;
  }
};

// Writes kNumStats statistics, NaN if the row or the temperature is invalid.
template <typename Element>
RowStatus stats_of_row(const Row<Element>& row, float temperature, float* output) {
  // The logits first: where they are NaN, the temperature that a head made of them is too.
  const RowScan scan = scan_row(row);
  const RowStatus status =
      scan.status == RowStatus::kValid ? temperature_status(temperature) : scan.status;
  if (status != RowStatus::kValid) {
    for (int i = 0; i < kNumStats; ++i) output[i] = kNaN;
    return status;
  }
  const Scaling scaling(scan, temperature + kStatsEpsilon);
  alignas(64) float values[kBlock];
  alignas(64) float weights[kBlock];

  DoubleLanes weight_sum;
  LargestLogits largest;
  for_each_block(row, [&](const Block& block) {
    for (int i = 0; i < block.padded; ++i) {
      weights[i] = exp_nonpositive(scaling(block.logits[i]));
    }
    weight_sum.add(weights, block.padded);
    largest.insert_block(block);
    return true;
  });
  const double total = weight_sum.total();
  const float inverse = static_cast<float>(1.0 / total);
  const float mean = static_cast<float>(1.0 / static_cast<double>(row.vocab));

  DoubleLanes entropy;
  DoubleLanes squares;
  for_each_block(row, [&](const Block& block) {
    for (int i = 0; i < block.padded; ++i) {
      weights[i] = exp_nonpositive(scaling(block.logits[i])) * inverse;
    }
    for (int i = 0; i < block.padded; ++i) {
      values[i] = weights[i] * log_positive(weights[i] + kStatsEpsilon);
    }
    entropy.add(values, block.padded);
    for (int i = 0; i < block.padded; ++i) {
      const float deviation = weights[i] - mean;
      values[i] = i < block.size ? deviation * deviation : 0.0f;  // padding is no token
    }
    squares.add(values, block.padded);
    return true;
  });

  double largest_sum = 0.0;
  for (const float logit : largest.logits) {
    largest_sum += static_cast<double>(exp_nonpositive(scaling(logit)));
  }
  output[0] = static_cast<float>(1.0 / total);
  output[1] = static_cast<float>(-entropy.total());
  // The variance of a single number is not defined; we call it 0.
  output[2] = row.vocab > 1
                  ? static_cast<float>(squares.total() / static_cast<double>(row.vocab - 1))
                  : 0.0f;
  output[3] = static_cast<float>(largest_sum / total);
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
