// Arguments of distribution_stats, shared by every device. No torch, no Python.
#pragma once

#include <cstdint>

#include "autodeco/dtype.h"
#include "autodeco/row_layout.h"
#include "autodeco/row_parameter.h"
#include "autodeco/row_status.h"
#include "autodeco/team_scratch.h"

namespace autodeco {

constexpr int kNumStats = 4;  // max, entropy, variance, sum of the five largest
constexpr int kTopCount = 5;
// The released heads compute softmax(l / (T + 1e-8)) and ln(q + 1e-8).
constexpr float kStatsEpsilon = 1e-8f;

struct DistributionStatsArguments {
  const void* logits = nullptr;
  DType dtype = DType::kFloat32;
  RowLayout layout;
  TeamScratch team;
  RowParameter<float> temperature;

  float* output = nullptr;      // [rows, kNumStats]
  RowStatus* status = nullptr;  // [rows]
};

}  // namespace autodeco
