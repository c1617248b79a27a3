// Arguments of the two training losses (docs/semantics.md, section 2), shared by every device. No
// torch, no Python.
#pragma once

#include <cstdint>
#include <limits>

#include "autodeco/dtype.h"
#include "autodeco/row_layout.h"
#include "autodeco/row_status.h"

namespace autodeco {

struct LossOptions {
  bool megatron = false;    // weighs the temperature loss by the probability at T
  bool exclusive = false;   // the cumulative mass of a token leaves out its own
  double steepness = 30.0;  // > 0
  // Smallest T of each loss, 0 is no clamp. In float32, like the temperatures they are compared
  // with.
  float temperature_clamp = 0.01f;
  float top_p_temperature_clamp = 1e-8f;
  double mass_eps = 1e-9;
  double probability_eps = 1e-9;
};

// Outputs of row r of N: the temperature loss at [0, r], the soft-top-p loss at [1, r].
struct AutodecoLossArguments {
  const void* logits = nullptr;
  DType dtype = DType::kFloat32;
  RowLayout layout;
  const float* temperature = nullptr;   // [rows]
  const float* top_p = nullptr;         // [rows]
  const int64_t* labels = nullptr;      // [rows]
  const float* drop_uniform = nullptr;  // [rows], or null: nothing is dropped
  float easy_token_drop = 0.0f;
  int64_t ignore_index = -100;
  LossOptions options;

  float* losses = nullptr;      // [2, rows], 0 where not counted
  float* gradients = nullptr;   // [3, rows]: d losses[0] / dT, d losses[1] / dT, d losses[1] / dP
  bool* counted = nullptr;      // [2, rows]
  RowStatus* status = nullptr;  // [rows]
};

// The gradient with respect to the logits of loss_gradients[0, r] * losses[0, r] +
// loss_gradients[1, r] * losses[1, r]. Nothing of a row that counts in neither is read.
struct AutodecoLossGradientArguments {
  const void* logits = nullptr;
  DType dtype = DType::kFloat32;
  RowLayout layout;
  const float* temperature = nullptr;     // [rows]
  const float* top_p = nullptr;           // [rows]
  const int64_t* labels = nullptr;        // [rows]
  const bool* counted = nullptr;          // [2, rows]
  const float* loss_gradients = nullptr;  // [2, rows]
  LossOptions options;

  void* gradient = nullptr;  // [rows, vocab], contiguous, in the dtype of the logits
};

// What the values of a row other than its logits say about it. Written so that NaN fails; `static`:
// see order.h.
static constexpr RowStatus loss_status(float temperature, float top_p, int64_t label, int64_t vocab,
                                       const LossOptions& options) {
  if (label < 0 || label >= vocab) return RowStatus::kLabelOutsideVocab;
  if (!(temperature >= 0.0f && temperature <= std::numeric_limits<float>::max())) {
    return RowStatus::kTemperatureInvalid;
  }
  const bool clamped = options.temperature_clamp > 0.0f && options.top_p_temperature_clamp > 0.0f;
  if (temperature == 0.0f && !clamped) return RowStatus::kTemperatureZero;
  if (!(top_p >= 0.0f && top_p <= 1.0f)) return RowStatus::kTopPOutsideUnit;
  return RowStatus::kValid;
}

}  // namespace autodeco
