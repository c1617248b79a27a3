// Temperature and top_p that the heads predict, for a range of rows, behind the products of their
// first weights with the hidden states.
#pragma once

#include <cmath>

#include "autodeco/predict_parameters.h"
#include "distribution_stats_impl.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// sigmoid(W2 relu(hidden) + b2), where hidden_of(i) is unit i before relu. The sum is in double, in
// an order fixed by the width alone.
template <typename HiddenOf>
float output_of_head(const HeadLayers& head, HiddenOf&& hidden_of) {
  constexpr int kSums = 8;  // that do not wait for each other
  double sums[kSums] = {};
  const auto add = [&](int64_t unit, int slot) {
    const float hidden = hidden_of(unit);
    // Written so that NaN stays NaN.
    sums[slot] += static_cast<double>((hidden < 0.0f ? 0.0f : hidden) * head.second_weight[unit]);
  };
  int64_t unit = 0;
  for (; unit + kSums <= head.width; unit += kSums) {
    for (int slot = 0; slot < kSums; ++slot) add(unit + slot, slot);
  }
  for (int slot = 0; unit < head.width; ++unit, ++slot) add(unit, slot);
  double output = static_cast<double>(*head.second_bias);
  for (const double sum : sums) output += sum;
  return static_cast<float>(1.0 / (1.0 + std::exp(-output)));
}

inline float predicted_temperature(const PredictParametersArguments& arguments, int64_t row_index) {
  const HeadLayers& head = arguments.temperature_head;
  if (head.product == nullptr) return 1.0f;
  const float* product = head.product + row_index * head.width;
  return 2.0f *
         output_of_head(head, [&](int64_t unit) { return product[unit] + head.first_bias[unit]; });
}

// `features` are the temperature and, if the head uses them, the statistics.
inline float predicted_top_p(const PredictParametersArguments& arguments, int64_t row_index,
                             const float* features) {
  const HeadLayers& head = arguments.top_p_head;
  if (head.product == nullptr) return 1.0f;
  const float* product = head.product + row_index * head.width;
  const int num_features = arguments.uses_statistics ? 1 + kNumStats : 1;
  return output_of_head(head, [&](int64_t unit) {
    const float* weight = arguments.feature_weight + unit * arguments.feature_weight_stride;
    float hidden = product[unit] + head.first_bias[unit];
    for (int i = 0; i < num_features; ++i) hidden += weight[i] * features[i];
    return hidden;
  });
}

void predict_parameters_rows(const PredictParametersArguments& arguments, int64_t begin,
                             int64_t end) {
  for (int64_t row_index = begin; row_index < end; ++row_index) {
    float features[1 + kNumStats];
    features[0] = predicted_temperature(arguments, row_index);
    RowStatus status = RowStatus::kValid;
    if (arguments.uses_statistics) {
      with_row(arguments.dtype, arguments.logits, row_offset(arguments.layout, row_index),
               arguments.layout.vocab,
               [&](const auto& row) { status = stats_of_row(row, features[0], features + 1); });
    }
    arguments.temperature[row_index] = features[0];
    arguments.top_p[row_index] = predicted_top_p(arguments, row_index, features);
    arguments.status[row_index] = status;
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
