// Runs predict_parameters on the emulated device, with buffers of exactly the right size, and
// judges what it predicts by the two heads in float64.
#pragma once

#include "emulated_kernels.h"
#include "predict_parameters.cuh"
#include "random_heads.h"

namespace autodeco::tests {

struct Prediction {
  std::vector<float> temperature;
  std::vector<float> top_p;
  std::vector<RowStatus> status;
  uint64_t bytes_loaded = 0;

  bool operator==(const Prediction& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    return same(temperature, other.temperature) && same(top_p, other.top_p) &&
           status == other.status;
  }
};

template <typename Element>
Prediction predict(const Batch<Element>& batch, PredictParametersArguments arguments, Shape shape) {
  const size_t rows = static_cast<size_t>(batch.num_rows);
  Prediction result;
  result.temperature.assign(rows, -7.0f);
  result.top_p.assign(rows, -7.0f);
  result.status.assign(rows, RowStatus::kNoFiniteLogit);
  arguments.logits = batch.memory.data() + batch.misaligned;
  arguments.dtype = dtype_of<Element>();
  arguments.layout = batch.layout();
  arguments.temperature = result.temperature.data();
  arguments.top_p = result.top_p.data();
  arguments.status = result.status.data();
  const uint64_t before = emulation::device.bytes_loaded;
  run_rows(&cuda::predict_parameters_kernel<Element, false>,
           &cuda::predict_parameters_kernel<Element, true>, arguments, shape);
  result.bytes_loaded = emulation::device.bytes_loaded - before;
  return result;
}

enum class Features { kNone, kTemperature, kStatistics };  // of the top-p head; kNone: no such head

struct RandomHeads {
  bool has_temperature_head;
  Features features;
  RandomHead temperature_head;
  RandomHead top_p_head;
  FeatureWeight feature_weight;

  RandomHeads(int rows, int temperature_width, int top_p_width, bool with_temperature_head,
              Features of_top_p_head, std::mt19937_64& random)
      : has_temperature_head(with_temperature_head),
        features(of_top_p_head),
        temperature_head(rows, temperature_width, random),
        top_p_head(rows, top_p_width, random),
        feature_weight(top_p_width, features == Features::kStatistics ? 1 + kNumStats : 1, random) {
  }

  PredictParametersArguments arguments() const {
    PredictParametersArguments arguments;
    if (has_temperature_head) arguments.temperature_head = temperature_head.layers();
    if (features != Features::kNone) {
      arguments.top_p_head = top_p_head.layers();
      arguments.feature_weight = feature_weight.values.data();
      arguments.feature_weight_stride = feature_weight.stride;
      arguments.uses_statistics = features == Features::kStatistics;
    }
    return arguments;
  }
};

// Every row is predicted what the heads say in float64.
template <typename Element>
void judge_prediction(const Batch<Element>& batch, const RandomHeads& heads, const Prediction& got,
                      const std::string& what) {
  for (int row = 0; row < batch.num_rows; ++row) {
    expect(got.status[row] == RowStatus::kValid, "status: " + what);
    const double temperature =
        heads.has_temperature_head ? 2.0 * heads.temperature_head.output(row) : 1.0;
    expect(std::fabs(got.temperature[row] - temperature) <= 1e-6,
           "T is " + std::to_string(got.temperature[row]) + " for " + std::to_string(temperature) +
               ": " + what);
    std::vector<double> inputs = {temperature};
    if (heads.features == Features::kStatistics) {
      for (const double statistic : statistics_of(batch.rows[row], temperature)) {
        inputs.push_back(statistic);
      }
    }
    const double top_p = heads.features == Features::kNone
                             ? 1.0
                             : heads.top_p_head.output(row, &heads.feature_weight, inputs);
    expect(
        std::fabs(got.top_p[row] - top_p) <= 5e-6,
        "P is " + std::to_string(got.top_p[row]) + " for " + std::to_string(top_p) + ": " + what);
  }
}

}  // namespace autodeco::tests
