// predict_parameters on the emulated device, against the two heads in float64.
#include <cstdlib>

#include "emulated_predict.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using emulation::Order;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <typename Element>
void judge(const Batch<Element>& batch, Features features, bool has_temperature_head, int width,
           int other_width, std::mt19937_64& random, const std::string& what) {
  const RandomHeads heads(batch.num_rows, width, other_width, has_temperature_head, features,
                          random);
  PredictParametersArguments arguments = heads.arguments();
  const Prediction got = predict(batch, arguments, 1);
  judge_prediction(batch, heads, got, what);
  if (features != Features::kStatistics) {
    expect(got.bytes_loaded == 0, "reads no logits: " + what);
  } else if (batch.num_rows == 1) {
    const uint64_t before = emulation::device.bytes_loaded;
    std::vector<RowStatus> status;
    distribution_stats(batch, got.temperature[0], 1, status);
    expect(got.bytes_loaded == emulation::device.bytes_loaded - before,
           "reads what distribution_stats reads: " + what);
  }
  for (const Shape shape : kShapes) {
    for (const Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
      emulation::device.order = order;
      expect(predict(batch, arguments, shape) == got, "same in another launch shape: " + what);
    }
  }
  // The last row alone, at another alignment.
  const Batch<Element> alone({batch.rows.back()}, (batch.misaligned + 1) % 4);
  const int64_t last = batch.num_rows - 1;
  arguments.temperature_head.product += has_temperature_head ? last * width : 0;
  arguments.top_p_head.product += features != Features::kNone ? last * other_width : 0;
  const Prediction row = predict(alone, arguments, 2);
  expect(std::memcmp(&row.temperature[0], &got.temperature.back(), sizeof(float)) == 0 &&
             std::memcmp(&row.top_p[0], &got.top_p.back(), sizeof(float)) == 0,
         "a row does not see its batch: " + what);
}

template <typename Element>
void predictions_are_those_of_the_heads(int trials, uint64_t seed) {
  std::mt19937_64 random(seed);
  const int widths[] = {256, 1, 33, 700, 1024};
  const Features all_features[] = {Features::kStatistics, Features::kTemperature, Features::kNone};
  for (int trial = 0; trial < trials; ++trial) {
    const int vocab = 1 + static_cast<int>(random() % (trial % 5 == 0 ? 9000 : 2600));
    const int rows = 1 + static_cast<int>(random() % 3);
    const RowKind kind = static_cast<RowKind>(random() % static_cast<int>(RowKind::kHuge));
    std::vector<std::vector<float>> logits;
    for (int row = 0; row < rows; ++row) logits.push_back(make_row(kind, vocab, random));
    const Batch<Element> batch(logits, static_cast<int>(random() % 4));
    const Features features = trial % 2 == 0 ? Features::kStatistics : all_features[random() % 3];
    const bool has_temperature_head = trial % 4 != 3;
    const int width = widths[random() % 5];
    const std::string what = "kind " + std::to_string(static_cast<int>(kind)) + ", vocab " +
                             std::to_string(vocab) + ", width " + std::to_string(width) +
                             ", trial " + std::to_string(trial);
    judge(batch, features, has_temperature_head, width, widths[random() % 5], random, what);
  }
}

void invalid_rows_are_nan_and_do_not_touch_the_others() {
  std::mt19937_64 random(5);
  constexpr int kRows = 5;
  constexpr int kWidth = 64;
  std::vector<std::vector<float>> logits(kRows, make_row(RowKind::kPeaked, 3000, random));
  logits[1][2500] = kNaN;
  logits[2][17] = std::numeric_limits<float>::infinity();
  logits[3].assign(3000, -std::numeric_limits<float>::infinity());
  const Batch<float> batch(logits, 0);
  RandomHead temperature_head(kRows, kWidth, random);
  const RandomHead top_p_head(kRows, kWidth, random);
  for (int unit = 0; unit < kWidth; ++unit) temperature_head.product[4 * kWidth + unit] = kNaN;
  const std::vector<float> feature_weight(kWidth * (1 + kNumStats), 0.1f);
  PredictParametersArguments arguments;
  arguments.temperature_head = temperature_head.layers();
  arguments.top_p_head = top_p_head.layers();
  arguments.feature_weight = feature_weight.data();
  arguments.feature_weight_stride = 1 + kNumStats;
  arguments.uses_statistics = true;
  const std::vector<RowStatus> wanted = {RowStatus::kValid, RowStatus::kLogitNaN,
                                         RowStatus::kLogitPositiveInfinity,
                                         RowStatus::kNoFiniteLogit, RowStatus::kTemperatureInvalid};
  for (const Shape shape : {Shape(1), Shape(2), Shape(8), portable(8)}) {
    const Prediction got = predict(batch, arguments, shape);
    expect(got.status == wanted, "status of invalid rows");
    for (int row = 0; row < kRows; ++row) {
      expect(std::isnan(got.temperature[row]) == (row == 4), "T is NaN where its input is");
      expect(std::isnan(got.top_p[row]) == (row != 0), "P of an invalid row is NaN");
    }
  }
  // Without the statistics no row is looked at.
  arguments.uses_statistics = false;
  const Prediction got = predict(batch, arguments, 1);
  for (int row = 0; row < kRows; ++row) {
    expect(got.status[row] == RowStatus::kValid, "status of rows that are not read");
    expect(std::isnan(got.top_p[row]) == (row == 4), "P of a row that is not read");
  }
}

}  // namespace

int main(int count, char** values) {
  const int trials = count > 1 ? std::atoi(values[1]) : 100;
  try {
    predictions_are_those_of_the_heads<float>(trials, 1);
    predictions_are_those_of_the_heads<cuda::BFloat16>(trials, 2);
    predictions_are_those_of_the_heads<cuda::Float16>(trials, 3);
    invalid_rows_are_nan_and_do_not_touch_the_others();
  } catch (const std::exception& error) {
    expect(false, error.what());
  }
  std::printf("%s\n",
              failures == 0 ? "emulated predictions: all passed" : "emulated predictions: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
