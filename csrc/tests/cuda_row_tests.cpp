// filter_logits and distribution_stats on the emulated device, against a float64 sort.
#include <cstdlib>

#include "emulated_kernels.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using emulation::Order;

template <typename Element>
void judge_filtered(const Batch<Element>& batch, const Filters& filters, Shape shape,
                    const std::string& what) {
  std::vector<RowStatus> status;
  const std::vector<float> output = filter_logits(batch, filters, shape, batch.vocab, status);
  expect(status[0] == RowStatus::kValid, "status: " + what);
  const std::vector<float>& logits = batch.rows[0];
  const float divisor = filters.temperature == 0.0f ? 1.0f : filters.temperature;
  const Oracle oracle(logits, divisor);
  int64_t kept = 0;
  while (kept < batch.vocab && std::isfinite(output[oracle.order[kept]])) ++kept;
  expect(oracle.length_is_right(filters, kept), "kept " + std::to_string(kept) + ": " + what);
  for (int rank = 0; rank < batch.vocab; ++rank) {
    const int column = oracle.order[rank];
    if (rank >= kept) {
      expect(std::isinf(output[column]) && output[column] < 0, "prefix: " + what);
    } else {
      const float wanted = std::clamp(logits[column] / divisor, -std::numeric_limits<float>::max(),
                                      std::numeric_limits<float>::max());
      expect(output[column] == wanted, "value: " + what);
    }
  }
  for (const Shape other : {Shape(1), Shape(8), portable(8)}) {
    expect(filter_logits(batch, filters, other, batch.vocab, status) == output,
           "same in another launch shape: " + what);
  }
}

template <typename Element>
void judge_stats(const Batch<Element>& batch, float temperature, Shape shape,
                 const std::string& what) {
  std::vector<RowStatus> status;
  const std::vector<float> stats = distribution_stats(batch, temperature, shape, status);
  expect(status[0] == RowStatus::kValid, "status: " + what);
  const std::vector<float>& logits = batch.rows[0];
  const std::vector<double> wanted = statistics_of(logits, temperature);
  for (int i = 0; i < kNumStats; ++i) {
    // ln(q) of a float q near 1 is off by half an ulp of q.
    const double slack = i == 1 ? 3e-7 : 1e-8;
    expect(std::fabs(stats[i] - wanted[i]) <= 4e-6 * std::fabs(wanted[i]) + slack,
           "stat " + std::to_string(i) + " is " + std::to_string(stats[i]) + " for " +
               std::to_string(wanted[i]) + ": " + what);
  }
  for (const Shape other : {Shape(1), Shape(8), portable(8)}) {
    expect(distribution_stats(batch, temperature, other, status) == stats,
           "same in another launch shape: " + what);
  }
}

template <typename Element>
void kernels_agree_with_a_sort(int trials, uint64_t seed) {
  std::mt19937_64 random(seed);
  const float temperatures[] = {1.0f, 0.1f, 0.7f, 2.0f, 0.0f};
  const float top_ps[] = {0.9f, 0.5f, 1.0f, 0.999999f, 0.0f};
  const Order orders[] = {Order::kForward, Order::kReverse, Order::kRandom, Order::kLockstep};
  const RowKind kinds[] = {RowKind::kPeaked,    RowKind::kGaussian,   RowKind::kUniform,
                           RowKind::kRounded,   RowKind::kAllEqual,   RowKind::kTwoValues,
                           RowKind::kMasked,    RowKind::kClose,      RowKind::kAscending,
                           RowKind::kConfident, RowKind::kNeighbours, RowKind::kHalf};
  for (int trial = 0; trial < trials; ++trial) {
    const int vocab = 1 + static_cast<int>(random() % (trial % 5 == 0 ? 9000 : 2600));
    const RowKind kind = kinds[random() % std::size(kinds)];
    const Batch<Element> batch({make_row(kind, vocab, random)}, static_cast<int>(random() % 4));
    Filters filters;
    filters.temperature = temperatures[random() % 5];
    filters.top_p = top_ps[random() % 5];
    if (trial % 3 == 0) filters.top_k = 1 + static_cast<int64_t>(random() % (vocab + 3));
    if (trial % 4 == 0) filters.min_p = 0.01f;
    emulation::device.order = orders[random() % 4];
    const Shape shape = random_shape(random);
    const std::string what = "kind " + std::to_string(static_cast<int>(kind)) + ", T " +
                             std::to_string(filters.temperature) + ", P " +
                             std::to_string(filters.top_p) + ", vocab " + std::to_string(vocab);
    judge_filtered(batch, filters, shape, what);
    if (filters.temperature > 0.0f) judge_stats(batch, filters.temperature, shape, what);
  }
}

// To the bit, -0.0 included: floats of every exponent, divided by temperatures of every size.
void quotients_are_exact() {
  constexpr int kVocab = 3001;
  std::mt19937_64 random(4);
  for (const float temperature :
       {1e-45f, 1e-39f, 1e-30f, 0.3f, 0.7f, 1.0f, 1.99999988f, 1e17f, 1e30f, 3.4e38f, 0.0f}) {
    std::vector<float> row;
    while (row.size() < kVocab) {
      const bool is_usual = row.size() % 2 == 0;
      const float logit = is_usual ? std::normal_distribution<float>(0.0f, 9.0f)(random)
                                   : std::bit_cast<float>(static_cast<uint32_t>(random()));
      if (std::isfinite(logit)) row.push_back(row.size() % 101 == 0 ? -0.0f : logit);
    }
    std::vector<RowStatus> status;
    const Filters filters = {temperature, 1.0f, 0, 0.0f};
    const float max = *std::max_element(row.begin(), row.end());
    for (const int misaligned : {0, 1}) {
      const std::vector<float> output =
          filter_logits(Batch<float>({row}, misaligned), filters, 2, kVocab, status);
      for (int i = 0; i < kVocab; ++i) {
        if (temperature == 0.0f && row[i] != max) continue;
        const float wanted =
            std::clamp(row[i] / (temperature == 0.0f ? 1.0f : temperature),
                       -std::numeric_limits<float>::max(), std::numeric_limits<float>::max());
        expect(std::bit_cast<uint32_t>(output[i]) == std::bit_cast<uint32_t>(wanted),
               "quotient at T = " + std::to_string(temperature));
      }
    }
  }
}

void invalid_rows_are_filled() {
  std::vector<float> row(3000, 0.5f);
  row[2500] = std::numeric_limits<float>::quiet_NaN();
  for (const Shape shape : {Shape(1), Shape(2), portable(2)}) {
    std::vector<RowStatus> status;
    const Batch<float> batch({row}, 0);
    for (const float value : filter_logits(batch, {}, shape, 3000, status)) {
      expect(std::isinf(value), "an invalid row is all filter_value");
    }
    expect(status[0] == RowStatus::kLogitNaN, "status of filter_logits");
    const std::vector<float> part = filter_logits(batch, {}, shape, 2000, status);
    expect(status[0] == RowStatus::kValid && part[1999] == 0.5f && std::isinf(part[2000]) &&
               std::isinf(part[2999]),
           "columns beyond valid_vocab get filter_value");
    for (const float value : distribution_stats(batch, 1.0f, shape, status)) {
      expect(std::isnan(value), "statistics of an invalid row are NaN");
    }
    expect(status[0] == RowStatus::kLogitNaN, "status of distribution_stats");
    // As on the CPU: parameters first in filter_logits, logits first in distribution_stats.
    Filters negative;
    negative.temperature = -1.0f;
    filter_logits(batch, negative, shape, 3000, status);
    expect(status[0] == RowStatus::kTemperatureInvalid, "bad T and bad logits, filter_logits");
    distribution_stats(batch, -1.0f, shape, status);
    expect(status[0] == RowStatus::kLogitNaN, "bad T and bad logits, distribution_stats");
    const Batch<float> good({std::vector<float>(3000, 0.5f)}, 0);
    for (const float value : distribution_stats(good, -1.0f, shape, status)) {
      expect(std::isnan(value), "statistics of a row with a bad T are NaN");
    }
    expect(status[0] == RowStatus::kTemperatureInvalid, "bad T, distribution_stats");
  }
}

}  // namespace

int main(int count, char** values) {
  const int trials = count > 1 ? std::atoi(values[1]) : 150;
  try {
    kernels_agree_with_a_sort<float>(trials, 1);
    kernels_agree_with_a_sort<cuda::BFloat16>(trials, 2);
    kernels_agree_with_a_sort<cuda::Float16>(trials, 3);
    quotients_are_exact();
    invalid_rows_are_filled();
  } catch (const std::exception& error) {
    expect(false, error.what());
  }
  std::printf("%s\n", failures == 0 ? "emulated rows: all passed" : "emulated rows: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
