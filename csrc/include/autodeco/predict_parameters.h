// Arguments of predict_parameters, shared by every device. No torch, no Python.
//
// The two heads of docs/semantics.md, section 2, behind the products of their first weights with
// the hidden states. T = 2 sigmoid(W2 relu(a + b1) + b2) with a = W1 h; P = sigmoid(W2 relu(a + E x
// + b1) + b2), where x is [T] or [T, the statistics] and E the columns of W1 that meet it.
#pragma once

#include <cstdint>

#include "autodeco/distribution_stats.h"

namespace autodeco {

// A head without the product a. Its values are float32 and contiguous.
struct HeadLayers {
  const float* product = nullptr;        // [rows, width]; null: no such head, it predicts 1
  const float* first_bias = nullptr;     // [width]
  const float* second_weight = nullptr;  // [width]
  const float* second_bias = nullptr;    // [1]
  int64_t width = 0;
};

struct PredictParametersArguments {
  const void* logits = nullptr;
  DType dtype = DType::kFloat32;
  RowLayout layout;
  TeamScratch team;

  HeadLayers temperature_head;
  HeadLayers top_p_head;
  const float* feature_weight = nullptr;  // E, [top_p_head.width, 1 or 1 + kNumStats]
  int64_t feature_weight_stride = 0;      // of its rows
  bool uses_statistics = false;           // else the logits are not read, and every row is valid

  float* temperature = nullptr;  // [rows], in [0, 2]; NaN where its input is
  float* top_p = nullptr;        // [rows], in [0, 1]; NaN where its input is, or the row is invalid
  RowStatus* status = nullptr;   // [rows]
};

}  // namespace autodeco
