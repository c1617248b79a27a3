// Heads with random weights, and what they predict in float64. Vectors of exactly the right size,
// so that AddressSanitizer sees what is read beyond.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "autodeco/predict_parameters.h"

namespace autodeco::tests {

// E: the columns of the first weights that meet the features, in a wider matrix as in a head.
struct FeatureWeight {
  int stride;
  std::vector<float> values;

  FeatureWeight(int width, int num_features, std::mt19937_64& random) : stride(num_features + 3) {
    std::normal_distribution<float> normal;
    for (int i = 0; i < (width - 1) * stride + num_features; ++i) values.push_back(normal(random));
  }
};

struct RandomHead {
  std::vector<float> product;  // [rows, width]
  std::vector<float> first_bias;
  std::vector<float> second_weight;
  float second_bias;

  RandomHead(int rows, int width, std::mt19937_64& random) {
    std::normal_distribution<float> normal;
    for (int i = 0; i < rows * width; ++i) product.push_back(normal(random));
    for (int i = 0; i < width; ++i) {
      first_bias.push_back(0.3f * normal(random));
      second_weight.push_back(2.0f * normal(random) / std::sqrt(static_cast<float>(width)));
    }
    second_bias = normal(random);
  }

  int width() const { return static_cast<int>(first_bias.size()); }

  HeadLayers layers() const {
    HeadLayers layers;
    layers.product = product.data();
    layers.first_bias = first_bias.data();
    layers.second_weight = second_weight.data();
    layers.second_bias = &second_bias;
    layers.width = width();
    return layers;
  }

  // sigmoid(W2 relu(a + b1 + E x) + b2) of a row.
  double output(int row, const FeatureWeight* weight = nullptr,
                const std::vector<double>& features = {}) const {
    double sum = second_bias;
    for (int unit = 0; unit < width(); ++unit) {
      double hidden = static_cast<double>(product[row * width() + unit]) + first_bias[unit];
      for (size_t i = 0; i < features.size(); ++i) {
        hidden += static_cast<double>(weight->values[unit * weight->stride + i]) * features[i];
      }
      sum += std::max(hidden, 0.0) * second_weight[unit];
    }
    return 1.0 / (1.0 + std::exp(-sum));
  }
};

}  // namespace autodeco::tests
