// The training losses on the emulated device, against a float64 sort.
#include <cstdlib>

#include "emulated_loss.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using emulation::Order;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Logits that differ by less than this many T are equal, where there are thousands of them.
constexpr double kResolution = 1e-9;

// The place of the cut may be off by this much of mass.
constexpr double kCutSlack = 2e-7;

struct Bounds {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void take(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  // How far a value is outside, in units of what is allowed.
  double miss(double value, double relative, double absolute) const {
    const double size = std::max(std::fabs(low), std::fabs(high));
    const double outside = value < low ? low - value : value > high ? value - high : 0.0;
    if (!(value == value)) return 1e9;
    return outside / (relative * size + absolute + 1e-37);
  }
};

double worst[5] = {};

void judge_row(const std::vector<float>& row, int64_t label, float temperature, float top_p,
               const LossOptions& options, const float* losses, const float* gradients,
               int64_t rows, const std::string& what) {
  const LossOracle oracle(row, label);
  Bounds bounds[5];
  double terms = 0.0;
  const double weight = oracle.softmax(1.0).p[oracle.label_rank];
  for (const double shift : {0.0, -kCutSlack, kCutSlack}) {
    const double shifted = top_p == 1.0f ? 1.0 : std::max(top_p + shift, 0.0);
    const LossOracle::Values values = oracle.at(temperature, shifted, options);
    bounds[0].take(values.losses[0]);
    bounds[1].take(values.losses[1]);
    for (int i = 0; i < 3; ++i) bounds[2 + i].take(values.gradients[i]);
    terms = std::max(terms, values.terms);
  }
  const double got[5] = {losses[0], losses[rows], gradients[0], gradients[rows],
                         gradients[2 * rows]};
  const double relative[5] = {1e-5, 1e-5, 1e-4, 1e-4, 1e-4};
  const double resolution = kResolution * weight / std::max(temperature, 1e-8f);
  const double absolute[5] = {0.0, 1e-5 * options.probability_eps, resolution,
                              1e-5 * terms + resolution, 0.0};
  const char* names[5] = {"temperature loss", "soft-top-p loss", "dT of the first",
                          "dT of the second", "dP"};
  for (int i = 0; i < 5; ++i) {
    const double miss = bounds[i].miss(got[i], relative[i], absolute[i]);
    worst[i] = std::max(worst[i], miss);
    if (miss <= 1.0) continue;
    char text[200];
    std::snprintf(text, sizeof text,
                  "%s is %.9g for %.9g .. %.9g (T %g, P %g, label rank %d): ", names[i], got[i],
                  bounds[i].low, bounds[i].high, temperature, top_p, oracle.label_rank);
    expect(false, text + what);
  }
}

template <typename Element>
void losses_are_those_of_the_sorted_row(int trials, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (int trial = 0; trial < trials; ++trial) {
    const RandomLosses<Element> all = random_losses<Element>(trial, random);
    const auto& [batch, inputs, what] = all;
    const int rows = batch.num_rows;
    const LossResult got = autodeco_loss(batch, inputs);
    for (int row = 0; row < rows; ++row) {
      expect(got.status[row] == RowStatus::kValid, "status: " + what);
      expect(got.counted[row] == 1 && got.counted[rows + row] == 1, "counted: " + what);
      judge_row(batch.rows[row], inputs.labels[row], inputs.temperature[row], inputs.top_p[row],
                inputs.options, got.losses.data() + row, got.gradients.data() + row, rows,
                what + ", row " + std::to_string(row));
    }
    for (const Order order : {Order::kReverse, Order::kRandom, Order::kLockstep}) {
      emulation::device.order = order;
      expect(autodeco_loss(batch, inputs) == got, "same in another order of threads: " + what);
    }
    emulation::device.order = Order::kForward;
    const RandomLosses<Element> alone = last_alone(all);
    const LossResult single = autodeco_loss(alone.batch, alone.inputs);
    bool same = true;
    for (int i = 0; i < 2; ++i) {
      same &= std::memcmp(&single.losses[i], &got.losses[(i + 1) * rows - 1], 4) == 0;
    }
    for (int i = 0; i < 3; ++i) {
      same &= std::memcmp(&single.gradients[i], &got.gradients[(i + 1) * rows - 1], 4) == 0;
    }
    expect(same, "a row does not see its batch: " + what);
  }
}

// Rows of one launch, each wrong in its own way, between right ones.
void invalid_rows_are_nan_and_do_not_touch_the_others() {
  std::mt19937_64 random(5);
  constexpr int kRows = 16;
  constexpr int kVocab = 9000;  // more than a block reads at a time
  std::vector<std::vector<float>> logits(kRows, make_row(RowKind::kPeaked, kVocab, random));
  LossInputs inputs;
  inputs.temperature.assign(kRows, 1.0f);
  inputs.top_p.assign(kRows, 0.9f);
  inputs.labels.assign(kRows, 17);
  std::vector<RowStatus> wanted(kRows, RowStatus::kValid);
  const auto spoil = [&](int row, RowStatus status) { wanted[row] = status; };
  logits[1][2500] = kNaN, spoil(1, RowStatus::kLogitNaN);
  logits[2][5] = kInf, spoil(2, RowStatus::kLogitPositiveInfinity);
  logits[3].assign(kVocab, -kInf), spoil(3, RowStatus::kNoFiniteLogit);
  inputs.temperature[4] = -1.0f, spoil(4, RowStatus::kTemperatureInvalid);
  inputs.temperature[5] = kNaN, spoil(5, RowStatus::kTemperatureInvalid);
  inputs.top_p[6] = 1.5f, spoil(6, RowStatus::kTopPOutsideUnit);
  inputs.labels[7] = kVocab, spoil(7, RowStatus::kLabelOutsideVocab);
  inputs.labels[8] = -1, spoil(8, RowStatus::kLabelOutsideVocab);
  // Ignored: nothing of the row is looked at.
  inputs.labels[9] = -100, inputs.temperature[9] = kNaN, logits[9].assign(kVocab, kNaN);
  // A label that the base masks out.
  logits[10][17] = -kInf;
  // Of several faults the first in this order: the label, the logits, T and P.
  inputs.temperature[11] = kNaN, logits[11].assign(kVocab, kNaN), spoil(11, RowStatus::kLogitNaN);
  inputs.top_p[12] = kNaN, logits[12][kVocab - 1] = kInf,
  spoil(12, RowStatus::kLogitPositiveInfinity);
  inputs.labels[13] = -1, logits[13][0] = kNaN, spoil(13, RowStatus::kLabelOutsideVocab);
  logits[14][0] = kInf, logits[14][kVocab - 1] = kNaN, spoil(14, RowStatus::kLogitNaN);
  const auto judge = [&]<typename Element>(Element) {
    const Batch<Element> batch(logits, 0);
    const LossResult got = autodeco_loss(batch, inputs);
    expect(got.status == wanted, "status of invalid rows");
    for (int row = 0; row < kRows; ++row) {
      const bool invalid = wanted[row] != RowStatus::kValid;
      const bool ignored = row == 9;
      const bool zero = ignored || row == 10;
      for (int i = 0; i < 2; ++i) {
        expect(got.counted[i * kRows + row] == !ignored, "counted, row " + std::to_string(row));
        expect(std::isnan(got.losses[i * kRows + row]) == invalid, "NaN is for invalid rows");
        expect((got.losses[i * kRows + row] == 0.0f) == zero, "zero where nothing is lost");
      }
      for (int i = 0; i < 3; ++i) {
        expect(std::isnan(got.gradients[i * kRows + row]) == invalid, "NaN is for invalid rows");
        expect((got.gradients[i * kRows + row] == 0.0f) == zero, "zero where nothing is lost");
      }
    }
    expect(got.losses[0] == got.losses[15] && got.losses[16] == got.losses[31], "right rows");
  };
  judge(0.0f);
  judge(cuda::BFloat16());
  judge(cuda::Float16());
}

void easy_tokens_are_dropped() {
  std::vector<float> row(2000, 0.0f);
  row[3] = row[900] = 4.0f;
  const auto judge = [&]<typename Element>(Element) {
    const Batch<Element> batch({row, row, row, row}, 0);
    LossInputs inputs;
    inputs.temperature.assign(4, 1.0f);
    inputs.top_p.assign(4, 0.9f);
    inputs.labels = {3, 3, 900, 5};  // the second of two largest is not easy
    inputs.drop_uniform = {0.5f, 0.6f, 0.0f, 0.0f};
    for (const bool megatron : {false, true}) {
      inputs.options.megatron = megatron;
      const LossResult got = autodeco_loss(batch, inputs);
      const std::vector<char> counted = {0, 1, 1, 1, static_cast<char>(!megatron), 1, 1, 1};
      expect(got.counted == counted, "easy tokens");
      for (int i = 0; i < 8; ++i) {
        expect((got.losses[i] > 0.0f) == (counted[i] == 1), "losses of easy tokens");
      }
      expect(got.gradients[0] == 0.0f && got.gradients[1] != 0.0f, "gradients of easy tokens");
    }
  };
  judge(0.0f);
  judge(cuda::BFloat16());
}

// The whole vocabulary of a model, and one beyond 2^16 equal tokens.
void long_rows_are_as_exact() {
  std::mt19937_64 random(9);
  const auto judge = [&]<typename Element>(Element) {
    for (const RowKind kind : kLongKinds) {
      const Batch<Element> batch({make_row(kind, 151936, random)}, 0);
      for (const float top_p : {0.5f, 0.9f, 0.999f}) {
        for (const float temperature : {1.0f, 0.3f}) {
          LossInputs inputs;
          inputs.temperature = {temperature};
          inputs.top_p = {top_p};
          inputs.labels = {choose_label(batch.rows[0], temperature, top_p, random)};
          const LossResult got = autodeco_loss(batch, inputs);
          judge_row(batch.rows[0], inputs.labels[0], temperature, top_p, inputs.options,
                    got.losses.data(), got.gradients.data(), 1,
                    "kind " + std::to_string(static_cast<int>(kind)) + " of 151,936");
        }
      }
    }
  };
  judge(0.0f);
  judge(cuda::BFloat16());
}

// Logits that are subnormal floats, and so are their differences.
void subnormal_rows_are_as_exact() {
  std::mt19937_64 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> row(4097);
  for (float& logit : row) logit = 1e-40f * normal(random);
  const auto judge = [&]<typename Element>(Element) {
    const Batch<Element> batch({row}, 0);
    for (const float temperature : {1.0f, 0.05f, 1e-4f}) {
      for (const float top_p : {0.5f, 0.9f, 1.0f}) {
        LossInputs inputs;
        inputs.temperature = {temperature};
        inputs.top_p = {top_p};
        inputs.labels = {5};
        const LossResult got = autodeco_loss(batch, inputs);
        judge_row(batch.rows[0], 5, temperature, top_p, inputs.options, got.losses.data(),
                  got.gradients.data(), 1, "subnormal logits");
      }
    }
  };
  judge(0.0f);
  judge(cuda::BFloat16());
  judge(cuda::Float16());
}

// Without probability_eps a label that has no probability at T has an infinite loss, but only where
// it has a weight in float32.
void a_label_without_weight_has_no_loss() {
  std::mt19937_64 random(12);
  std::vector<float> row = make_row(RowKind::kGaussian, 4097, random);
  LossInputs inputs;
  inputs.temperature = {0.05f};
  inputs.top_p = {0.5f};
  inputs.labels = {5};
  inputs.options.probability_eps = 0.0;
  const auto judge = [&]<typename Element>(Element, float logit, bool infinite) {
    row[5] = logit;
    const LossResult got = autodeco_loss(Batch<Element>({row}, 0), inputs);
    const std::string what = "label at " + std::to_string(logit);
    expect(infinite ? std::isinf(got.losses[1]) : got.losses[1] == 0.0f, what);
    expect(std::isfinite(got.losses[0]), "temperature loss, " + what);
    for (const float gradient : got.gradients) expect(std::isfinite(gradient), "finite, " + what);
  };
  for (const float logit : {-60.0f, -200.0f, -690.0f, -800.0f}) {
    judge(0.0f, logit, logit == -60.0f);
    judge(cuda::BFloat16(), logit, logit == -60.0f);
    judge(cuda::Float16(), logit, logit == -60.0f);
  }
}

// As a mask of the lowest finite number is.
void logits_far_below_are_as_if_excluded() {
  for (const float temperature : {1.8e-8f, 2.6e-8f, 7e-12f, 1.0f}) {
    std::vector<float> row(3000, -3.38e38f);
    row[3] = 1.0f, row[1000] = 1.0f, row[2999] = -2.0f;
    LossInputs inputs;
    inputs.options.temperature_clamp = inputs.options.top_p_temperature_clamp = 0.0f;
    inputs.temperature = {temperature};
    inputs.top_p = {0.3f};
    inputs.labels = {1000};
    const LossResult got = autodeco_loss(Batch<float>({row}, 0), inputs);
    std::replace(row.begin(), row.end(), -3.38e38f, -kInf);
    const LossResult excluded = autodeco_loss(Batch<float>({row}, 0), inputs);
    const std::string what = "far below is as if excluded: T " + std::to_string(temperature);
    expect(got.losses == excluded.losses && got.gradients == excluded.gradients, what);
    expect(got.status == excluded.status && got.losses[0] > 0.0f && got.losses[1] > 0.0f, what);
  }
}

}  // namespace

int main(int count, char** values) {
  const int trials = count > 1 ? std::atoi(values[1]) : 100;
  try {
    losses_are_those_of_the_sorted_row<cuda::BFloat16>(trials, 1);
    std::printf("worst, of what is allowed: %.3g %.3g %.3g %.3g %.3g\n", worst[0], worst[1],
                worst[2], worst[3], worst[4]);
    losses_are_those_of_the_sorted_row<float>(trials, 2);
    std::printf("worst, of what is allowed: %.3g %.3g %.3g %.3g %.3g\n", worst[0], worst[1],
                worst[2], worst[3], worst[4]);
    losses_are_those_of_the_sorted_row<cuda::Float16>(trials, 3);
    invalid_rows_are_nan_and_do_not_touch_the_others();
    easy_tokens_are_dropped();
    long_rows_are_as_exact();
    subnormal_rows_are_as_exact();
    a_label_without_weight_has_no_loss();
    logits_far_below_are_as_if_excluded();
  } catch (const std::exception& error) {
    expect(false, error.what());
  }
  std::printf("worst, of what is allowed: %.3g %.3g %.3g %.3g %.3g\n", worst[0], worst[1], worst[2],
              worst[3], worst[4]);
  std::printf("%s\n", failures == 0 ? "emulated losses: all passed" : "emulated losses: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
