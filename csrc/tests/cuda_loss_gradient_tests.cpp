// The gradient of the training losses with respect to the logits on the emulated device, against a
// float64 sort.
#include <cstdlib>

#include "emulated_loss_gradient.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using emulation::Order;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

double worst = 0.0;

template <typename Element>
void judge_row(const std::vector<float>& row, const LossInputs& inputs, int index,
               const Upstream& upstream, const Element* got, const std::string& what) {
  const double miss = miss_of_row(row, inputs, index, upstream, got);
  worst = std::max(worst, miss);
  if (miss <= 1.0) return;
  char text[200];
  std::snprintf(text, sizeof text, "off by %.3g of what is allowed (T %g, P %g): ", miss,
                inputs.temperature[index], inputs.top_p[index]);
  expect(false, text + what);
}

// So that the largest element is about 50, whatever the label weighs: float16 has few small
// numbers.
Upstream upstream_for(const std::vector<std::vector<float>>& rows, const LossInputs& inputs,
                      int kind) {
  const int num_rows = static_cast<int>(rows.size());
  Upstream upstream(num_rows, kind == 1 ? 0.0f : 1.0f, kind == 0 ? 0.0f : kind == 1 ? 1.0f : -0.7f);
  for (int row = 0; row < num_rows; ++row) {
    const LogitsGradientOracle oracle(rows[row], inputs.labels[row], inputs.temperature[row],
                                      inputs.top_p[row], inputs.options, upstream.gradients[row],
                                      upstream.gradients[num_rows + row]);
    const double factor = oracle.scale > 1e-30 ? 50.0 / oracle.scale : 1.0;
    upstream.gradients[row] *= static_cast<float>(factor);
    upstream.gradients[num_rows + row] *= static_cast<float>(factor);
  }
  return upstream;
}

template <typename Element>
void gradients_are_those_of_the_sorted_row(int trials, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (int trial = 0; trial < trials; ++trial) {
    const RandomLosses<Element> all = random_losses<Element>(trial, random);
    const auto& [batch, inputs, what] = all;
    const int rows = batch.num_rows;
    const int vocab = batch.vocab;
    const Upstream upstream = upstream_for(batch.rows, inputs, trial % 3);
    const LogitsGradient<Element> got = logits_gradient(batch, inputs, upstream);
    for (int row = 0; row < rows; ++row) {
      judge_row(batch.rows[row], inputs, row, upstream, got.values.data() + row * vocab,
                what + ", row " + std::to_string(row));
    }
    for (const Order order : {Order::kReverse, Order::kRandom, Order::kLockstep}) {
      emulation::device.order = order;
      expect(logits_gradient(batch, inputs, upstream) == got,
             "same in another order of threads: " + what);
    }
    emulation::device.order = Order::kForward;
    const RandomLosses<Element> alone = last_alone(all);
    const Upstream its(1, upstream.gradients[rows - 1], upstream.gradients[2 * rows - 1]);
    const LogitsGradient<Element> single = logits_gradient(alone.batch, alone.inputs, its);
    expect(std::memcmp(single.values.data(), got.values.data() + (rows - 1) * vocab,
                       vocab * sizeof(Element)) == 0,
           "a row does not see its batch: " + what);
  }
}

template <typename Element>
void clamps_and_constants_are_those_of_the_formula(int trials, uint64_t seed) {
  std::mt19937_64 random(seed);
  const float clamps[] = {0.01f, 0.5f, 1.0f, 2.0f};
  const double constants[] = {1e-9, 0.0, 1e-2};
  const float temperatures[] = {0.0f, 0.3f, 0.7f, 5.0f};
  const float top_ps[] = {0.0f, 0.5f, 0.99f, 1.0f};
  for (int trial = 0; trial < trials; ++trial) {
    const int vocab = 1 + static_cast<int>(random() % (trial % 5 == 0 ? 4 : 5000));
    const RowKind kind = static_cast<RowKind>(random() % static_cast<int>(RowKind::kNumKinds));
    const Batch<Element> batch({make_row(kind, vocab, random)}, static_cast<int>(random() % 4));
    LossInputs inputs;
    LossOptions& options = inputs.options;
    options.exclusive = random() % 2 == 0;
    options.temperature_clamp = clamps[random() % 4];
    options.top_p_temperature_clamp = clamps[random() % 4];
    options.mass_eps = constants[random() % 3];
    options.probability_eps = constants[random() % 3];
    inputs.temperature = {temperatures[random() % 4]};
    inputs.top_p = {top_ps[random() % 4]};
    const float clamped = std::max(inputs.temperature[0], options.top_p_temperature_clamp);
    inputs.labels = {choose_label(batch.rows[0], clamped, inputs.top_p[0], random)};
    const Upstream upstream = upstream_for(batch.rows, inputs, trial % 3);
    const LogitsGradient<Element> got = logits_gradient(batch, inputs, upstream);
    judge_row(batch.rows[0], inputs, 0, upstream, got.values.data(),
              "clamps and constants, trial " + std::to_string(trial));
  }
}

// Rows of one launch, each wrong in its own way, between right ones.
void rows_that_do_not_count_are_zero_and_invalid_ones_nan() {
  std::mt19937_64 random(5);
  constexpr int kRows = 13;
  constexpr int kVocab = 3000;
  std::vector<std::vector<float>> logits(kRows, make_row(RowKind::kPeaked, kVocab, random));
  LossInputs inputs;
  inputs.temperature.assign(kRows, 1.0f);
  inputs.top_p.assign(kRows, 0.9f);
  inputs.labels.assign(kRows, 17);
  Upstream upstream(kRows, 1.0f, 1.0f);
  logits[1][2500] = kNaN;
  logits[2][5] = kInf;
  logits[3].assign(kVocab, -kInf);
  inputs.temperature[4] = -1.0f;
  inputs.temperature[5] = kNaN;
  inputs.top_p[6] = 1.5f;
  inputs.labels[7] = kVocab;
  inputs.labels[8] = -1;
  // Nothing of a row that does not count is looked at.
  inputs.labels[9] = -100, inputs.temperature[9] = kNaN, logits[9].assign(kVocab, kNaN);
  upstream.counted[9] = upstream.counted[kRows + 9] = 0;
  // A label that the base masks out, and a token that it does.
  logits[10][17] = -kInf;
  logits[11][18] = -kInf;
  const auto judge = [&]<typename Element>(Element) {
    const Batch<Element> batch(logits, 0);
    const LogitsGradient<Element> got = logits_gradient(batch, inputs, upstream);
    for (int row = 0; row < kRows; ++row) {
      const bool invalid = row >= 1 && row <= 8;
      const bool zero = row == 9 || row == 10;
      const Element* of_row = got.values.data() + row * kVocab;
      double sum = 0.0;
      for (int i = 0; i < kVocab; ++i) {
        const float value = cuda::to_float(of_row[i]);
        expect(std::isnan(value) == invalid, "NaN is for invalid rows: " + std::to_string(row));
        const bool masked = zero || (row == 11 && i == 18);
        expect(!masked || value == 0.0f, "zero where nothing flows: " + std::to_string(row));
        sum += std::fabs(value);
      }
      expect(invalid || (sum > 0.0) == !zero, "right rows have a gradient");
    }
    const Element* first = got.values.data();
    expect(std::memcmp(first, first + 12 * kVocab, kVocab * sizeof(Element)) == 0, "right rows");
  };
  judge(0.0f);
  judge(cuda::BFloat16());
  judge(cuda::Float16());
}

// A loss that does not count gives nothing, whatever flows into it.
void each_loss_counts_for_itself() {
  std::mt19937_64 random(6);
  const auto judge = [&]<typename Element>(Element) {
    const Batch<Element> batch({make_row(RowKind::kPeaked, 2000, random)}, 0);
    LossInputs inputs;
    inputs.temperature = {0.8f};
    inputs.top_p = {0.7f};
    inputs.labels = {choose_label(batch.rows[0], 0.8f, 0.7f, random)};
    for (const int loss : {0, 1}) {
      Upstream dropped(1, 2.0f, 3.0f);
      dropped.counted[1 - loss] = 0;
      const Upstream without(1, loss == 0 ? 2.0f : 0.0f, loss == 1 ? 3.0f : 0.0f);
      expect(logits_gradient(batch, inputs, dropped) == logits_gradient(batch, inputs, without),
             "a dropped loss gives nothing");
    }
    Upstream none(1, 2.0f, 3.0f);
    none.counted = {0, 0};
    expect(logits_gradient(batch, inputs, none).bytes_loaded == 0, "nothing counts, nothing read");
  };
  judge(0.0f);
  judge(cuda::BFloat16());
}

// Heavy tokens of one value: the tail begins among them, so each has a gradient of its own, and the
// order is that of the columns.
void equal_heavy_tokens_differ_by_column() {
  std::vector<float> row(5000, -6.0f);
  for (const int column : {4000, 7, 1500, 1501, 1025, 300}) row[column] = 4.0f;
  const auto judge = [&]<typename Element>(Element) {
    const Batch<Element> batch({row}, 0);
    LossInputs inputs;
    inputs.temperature = {1.0f};
    inputs.top_p = {0.5f};
    inputs.labels = {1500};
    const Upstream upstream(1, 0.0f, 1000.0f);
    const LogitsGradient<Element> got = logits_gradient(batch, inputs, upstream);
    judge_row(batch.rows[0], inputs, 0, upstream, got.values.data(), "equal heavy tokens");
    expect(cuda::to_float(got.values[7]) != cuda::to_float(got.values[4000]),
           "equal heavy tokens are told apart");
  };
  judge(0.0f);
  judge(cuda::BFloat16());
  judge(cuda::Float16());
}

// A gradient beyond float32: tokens without weight still get 0.
void tiny_temperatures_leave_weightless_tokens_at_zero() {
  const auto judge = [&]<typename Element>(Element) {
    for (const float clamp : {0.0f, 0.5f}) {
      for (const int label : {1, 4}) {
        const Batch<Element> batch({{0.0f, 1.0f, 0.5f, -2.0f, 0.875f}}, 0);
        LossInputs inputs;
        inputs.options.temperature_clamp = 0.0f;
        inputs.options.top_p_temperature_clamp = clamp;
        inputs.temperature = {1e-36f};
        inputs.top_p = {0.5f};
        inputs.labels = {label};
        const LogitsGradient<Element> got =
            logits_gradient(batch, inputs, Upstream(1, 65536.0f, 65536.0f));
        for (const Element value : got.values) {
          expect(!std::isnan(cuda::to_float(value)), "tiny T gives a NaN");
        }
        for (const int other : {0, 2, 3}) {
          expect(clamp > 0.0f || cuda::to_float(got.values[other]) == 0.0f,
                 "tiny T, a token without weight");
        }
      }
    }
  };
  judge(0.0f);
  judge(cuda::BFloat16());
}

// As a mask of the lowest finite number is.
void logits_far_below_are_as_if_excluded() {
  const auto judge = [&]<typename Element>(Element) {
    for (const float temperature : {1.8e-8f, 2.6e-8f, 7e-12f, 1.0f}) {
      std::vector<float> row(3000, -3.38e38f);
      row[3] = 1.0f, row[1000] = 1.0f, row[2999] = -2.0f;
      LossInputs inputs;
      inputs.options.top_p_temperature_clamp = 0.0f;
      inputs.temperature = {temperature};
      inputs.top_p = {0.3f};
      inputs.labels = {1000};
      const Upstream upstream(1, 1.0f, 1.0f);
      const LogitsGradient<Element> got =
          logits_gradient(Batch<Element>({row}, 0), inputs, upstream);
      std::replace(row.begin(), row.end(), -3.38e38f, -kInf);
      const LogitsGradient<Element> excluded =
          logits_gradient(Batch<Element>({row}, 0), inputs, upstream);
      for (size_t i = 0; i < row.size(); ++i) {
        expect(cuda::to_float(got.values[i]) == cuda::to_float(excluded.values[i]),
               "far below is as if excluded: T " + std::to_string(temperature));
      }
      expect(cuda::to_float(got.values[1000]) != 0.0f, "the label has a gradient");
    }
  };
  judge(0.0f);
  judge(cuda::BFloat16());
}

// The whole vocabulary of a model.
void long_rows_are_as_exact() {
  std::mt19937_64 random(9);
  const float top_ps[] = {0.5f, 0.9f, 0.999f};
  int number = 0;
  const auto judge = [&]<typename Element>(Element) {
    for (const RowKind kind : kLongKinds) {
      const Batch<Element> batch({make_row(kind, 151936, random)}, 0);
      LossInputs inputs;
      inputs.temperature = {number % 2 == 0 ? 0.3f : 1.0f};
      inputs.top_p = {top_ps[number++ % 3]};
      inputs.labels = {choose_label(batch.rows[0], inputs.temperature[0], inputs.top_p[0], random)};
      const Upstream upstream = upstream_for(batch.rows, inputs, 2);
      const LogitsGradient<Element> got = logits_gradient(batch, inputs, upstream);
      judge_row(batch.rows[0], inputs, 0, upstream, got.values.data(),
                "kind " + std::to_string(static_cast<int>(kind)) + " of 151,936");
    }
  };
  judge(0.0f);
  judge(cuda::BFloat16());
}

void the_longest_row_fits() {
  std::mt19937_64 random(10);
  const Batch<float> batch({make_row(RowKind::kPeaked, 1 << 20, random)}, 0);
  LossInputs inputs;
  inputs.temperature = {0.7f};
  inputs.top_p = {0.9f};
  inputs.labels = {(1 << 20) - 1};
  const Upstream upstream = upstream_for(batch.rows, inputs, 2);
  const LogitsGradient<float> got = logits_gradient(batch, inputs, upstream);
  judge_row(batch.rows[0], inputs, 0, upstream, got.values.data(), "2^20 columns");
}

void print_worst() {
  std::printf("worst, of what is allowed: %.3g\n", worst);
  worst = 0.0;
}

}  // namespace

int main(int count, char** values) {
  const int trials = count > 1 ? std::atoi(values[1]) : 100;
  try {
    gradients_are_those_of_the_sorted_row<cuda::BFloat16>(trials, 1);
    print_worst();
    gradients_are_those_of_the_sorted_row<float>(trials, 2);
    print_worst();
    gradients_are_those_of_the_sorted_row<cuda::Float16>(trials, 3);
    print_worst();
    clamps_and_constants_are_those_of_the_formula<cuda::BFloat16>(trials, 4);
    clamps_and_constants_are_those_of_the_formula<float>(trials, 5);
    clamps_and_constants_are_those_of_the_formula<cuda::Float16>(trials, 6);
    print_worst();
    rows_that_do_not_count_are_zero_and_invalid_ones_nan();
    each_loss_counts_for_itself();
    equal_heavy_tokens_differ_by_column();
    tiny_temperatures_leave_weightless_tokens_at_zero();
    logits_far_below_are_as_if_excluded();
    long_rows_are_as_exact();
    if (trials >= 10) the_longest_row_fits();  // too long for the sanitizers
    print_worst();
  } catch (const std::exception& error) {
    expect(false, error.what());
  }
  std::printf("%s\n", failures == 0 ? "emulated gradients of the logits: all passed"
                                    : "emulated gradients of the logits: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
