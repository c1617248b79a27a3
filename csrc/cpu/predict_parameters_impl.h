// Temperature and top_p that the heads predict, for a range of rows, behind the products of their
// first weights with the hidden states.
#pragma once

#include <cmath>

#include "autodeco/predict_parameters.h"
#include "distribution_stats_impl.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// sigmoid(W2 relu(hidden) + b2). fill_hidden(begin, size, hidden) writes a part of the hidden layer
// before relu. The sum is in double, in an order fixed by the width alone.
template <typename FillHidden>
float output_of_head(const HeadLayers& head, FillHidden&& fill_hidden) {
  alignas(64) float terms[kBlock];
  DoubleLanes sum;
  for (int64_t begin = 0; begin < head.width; begin += kBlock) {
    const int64_t left = head.width - begin;
    const int size = left < kBlock ? static_cast<int>(left) : kBlock;
    const int padded = (size + kLanes - 1) / kLanes * kLanes;
    fill_hidden(begin, size, terms);
    const float* weight = head.second_weight + begin;
    // Written so that NaN stays NaN.
    for (int i = 0; i < size; ++i) terms[i] = (terms[i] < 0.0f ? 0.0f : terms[i]) * weight[i];
    for (int i = size; i < padded; ++i) terms[i] = 0.0f;
    sum.add(terms, padded);
  }
  const double output = sum.total() + static_cast<double>(*head.second_bias);
  return static_cast<float>(1.0 / (1.0 + std::exp(-output)));
}

inline float predicted_temperature(const PredictParametersArguments& arguments, int64_t row_index) {
  const HeadLayers& head = arguments.temperature_head;
  if (head.product == nullptr) return 1.0f;
  const float* product = head.product + row_index * head.width;
  return 2.0f * output_of_head(head, [&](int64_t begin, int size, float* hidden) {
           for (int i = 0; i < size; ++i)
             hidden[i] = product[begin + i] + head.first_bias[begin + i];
         });
}

// `features` are the temperature and, if the head uses them, the statistics.
inline float predicted_top_p(const PredictParametersArguments& arguments, int64_t row_index,
                             const float* features) {
  const HeadLayers& head = arguments.top_p_head;
  const int num_features = arguments.uses_statistics ? 1 + kNumStats : 1;
  const float* product = head.product + row_index * head.width;
  return output_of_head(head, [&](int64_t begin, int size, float* hidden) {
    for (int i = 0; i < size; ++i) {
      const float* weight =
          arguments.feature_weight + (begin + i) * arguments.feature_weight_stride;
      float sum = product[begin + i] + head.first_bias[begin + i];
      for (int feature = 0; feature < num_features; ++feature) {
        sum += weight[feature] * features[feature];
      }
      hidden[i] = sum;
    }
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
    arguments.top_p[row_index] = arguments.top_p_head.product == nullptr
                                     ? 1.0f
                                     : predicted_top_p(arguments, row_index, features);
    arguments.status[row_index] = status;
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
