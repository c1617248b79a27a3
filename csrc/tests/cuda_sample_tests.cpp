// The sampling kernel on the emulated device, judged by a float64 sort: kept sets, draws, infos,
// independence of team size and kind, thread order, batch and alignment, and invalid rows.
#include <cstdlib>

#include "autodeco/philox.h"
#include "emulated_kernels.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using emulation::Order;

int64_t judged_draws = 0;
int64_t draws_at_a_boundary = 0;

Filters random_filters(RowKind kind, int vocab, std::mt19937_64& random) {
  const float temperatures[] = {1.0f, 0.1f, 0.7f, 2.0f, 0.0f};
  const float top_ps[] = {0.9f, 0.5f, 0.95f, 1.0f, 0.999999f, 0.0f, 0.05f, 1.0f};
  Filters filters;
  filters.temperature = temperatures[random() % 5];
  if (kind == RowKind::kHuge) filters.temperature = random() % 2 == 0 ? 1e38f : 3e37f;
  if (kind == RowKind::kTiny) filters.temperature = random() % 2 == 0 ? 1e-39f : 1e-40f;
  filters.top_p = top_ps[random() % 8];
  if (random() % 3 == 0) filters.top_k = 1 + static_cast<int64_t>(random() % (vocab + 5));
  if (random() % 6 == 0) filters.top_k = 1 + static_cast<int64_t>(random() % 60);
  if (random() % 4 == 0) filters.min_p = random() % 2 == 0 ? 0.05f : 1e-4f;
  return filters;
}

std::string describe(RowKind kind, const Filters& filters, int vocab, Shape shape) {
  char text[200];
  std::snprintf(text, sizeof text, "kind %d, T %g, P %g, k %lld, min_p %g, vocab %d, %s",
                static_cast<int>(kind), filters.temperature, filters.top_p,
                static_cast<long long>(filters.top_k), filters.min_p, vocab, shape.text().c_str());
  return text;
}

template <typename Element>
void judge_row(const Batch<Element>& batch, int row, const Filters& filters,
               const SampleResult& result, int num_samples, const std::string& what) {
  const std::vector<float>& logits = batch.rows[row];
  const Oracle oracle(logits, filters.temperature == 0.0f ? 1.0f : filters.temperature);
  expect(result.status[row] == RowStatus::kValid, "status: " + what);
  const int64_t kept = result.kept[row];
  expect(oracle.length_is_right(filters, kept), "kept " + std::to_string(kept) + ": " + what);
  if (kept < 1 || kept > static_cast<int64_t>(logits.size())) return;
  double mass = 0.0;
  double total = 0.0;
  double raw = 0.0;
  const double max = logits[oracle.order[0]];
  std::vector<char> is_kept(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    if (static_cast<int64_t>(i) < kept) {
      mass += oracle.weight[oracle.order[i]];
      is_kept[oracle.order[i]] = 1;
    }
    total += oracle.weight[i];
    raw += std::exp(static_cast<double>(logits[i]) - max);
  }
  const bool greedy = filters.temperature == 0.0f;
  expect(std::fabs(result.log_kept_mass[row] - (greedy ? 0.0 : std::log(mass / total))) < 4e-6,
         "log_kept_mass: " + what);
  for (int sample = 0; sample < num_samples; ++sample) {
    const size_t slot = static_cast<size_t>(row * num_samples + sample);
    const int64_t token = result.tokens[slot];
    expect(token >= 0 && token < static_cast<int64_t>(logits.size()) && is_kept[token] != 0,
           "token is kept: " + what);
    if (token < 0 || token >= static_cast<int64_t>(logits.size())) continue;
    const double u = static_cast<double>(philox_uniform53(
                         static_cast<uint64_t>(kSeed), static_cast<uint64_t>(row) * 977,
                         RandomStream::kSample, static_cast<uint32_t>(sample))) *
                     0x1p-53;
    bool near = false;
    const int wanted = oracle.token(kept, u, near);
    ++judged_draws;
    if (token != wanted) {
      ++draws_at_a_boundary;
      expect(near,
             "token " + std::to_string(token) + " for " + std::to_string(wanted) + ": " + what);
    }
    const double logprob = greedy ? 0.0 : std::log(oracle.weight[token] / mass);
    const double raw_logprob = std::max(static_cast<double>(logits[token]) - max - std::log(raw),
                                        -static_cast<double>(std::numeric_limits<float>::max()));
    expect(std::fabs(result.logprobs[slot] - logprob) < 1e-5 + 1e-6 * std::fabs(logprob),
           "logprob: " + what);
    expect(
        std::fabs(result.raw_logprobs[slot] - raw_logprob) < 1e-5 + 1e-6 * std::fabs(raw_logprob),
        "raw_logprob: " + what);
  }
}

template <typename Element>
void kernel_agrees_with_a_sort(int trials, int seed) {
  std::mt19937_64 random(static_cast<uint64_t>(seed));
  const Order orders[] = {Order::kForward, Order::kReverse, Order::kRandom, Order::kLockstep};
  for (int trial = 0; trial < trials; ++trial) {
    const int vocab_kind = static_cast<int>(random() % 8);
    int vocab = 1 + static_cast<int>(random() % 3000);
    if (vocab_kind == 0) vocab = 1 + static_cast<int>(random() % 40);
    if (vocab_kind == 1) vocab = 9000 + static_cast<int>(random() % 8000);
    const int num_rows = 1 + static_cast<int>(random() % 3);
    const int num_samples = 1 + static_cast<int>(random() % 3 == 0 ? random() % 40 : 0);
    std::vector<std::vector<float>> source;
    std::vector<Filters> filters;
    std::vector<RowKind> kinds;
    for (int row = 0; row < num_rows; ++row) {
      RowKind kind = static_cast<RowKind>(random() % static_cast<int>(RowKind::kNumKinds));
      // float16 holds neither huge nor tiny numbers.
      if (std::is_same_v<Element, cuda::Float16> &&
          (kind == RowKind::kHuge || kind == RowKind::kTiny)) {
        kind = RowKind::kGaussian;
      }
      kinds.push_back(kind);
      source.push_back(make_row(kind, vocab, random));
      filters.push_back(random_filters(kind, vocab, random));
    }
    const Batch<Element> batch(source, static_cast<int>(random() % 3 == 0 ? random() % 8 : 0));
    const Shape shape = random_shape(random);
    emulation::device.order = orders[random() % 4];
    const SampleResult result = sample(batch, filters, shape, num_samples, true, vocab);
    for (int row = 0; row < num_rows; ++row) {
      judge_row(batch, row, filters[row], result, num_samples,
                describe(kinds[row], filters[row], vocab, shape));
    }
    // Another launch shape, another thread order, no infos, another alignment: the same tokens.
    const Shape other_shape = random_shape(random);
    emulation::device.order = orders[random() % 4];
    expect(sample(batch, filters, other_shape, num_samples, true, vocab) == result,
           "same in another launch shape: " + describe(kinds[0], filters[0], vocab, other_shape));
    const Batch<Element> moved(source, static_cast<int>(random() % 8));
    expect(sample(moved, filters, 1, num_samples, false, vocab).tokens == result.tokens,
           "same at another alignment");
  }
}

// Masses fill 64 bits to the last: 2^20 equal tokens and the largest P below 1.
void sums_do_not_overflow() {
  constexpr int kMostColumns = 1 << 20;
  const Batch<float> batch({std::vector<float>(kMostColumns, -1.25f)}, 0);
  Filters filters;
  filters.top_p = 0.99999994f;
  for (const Shape shape : {Shape(8), portable(8)}) {
    const SampleResult result = sample(batch, {filters}, shape, 2, true, kMostColumns);
    expect(result.kept[0] > kMostColumns - 4 && result.tokens[0] >= 0 && result.tokens[1] >= 0,
           "2^20 equal tokens");
  }
}

// Rows so long that float32 keys are counted per unit of several segments: top_p alone, with a
// top_k that fits the list, and with one that does not.
template <typename Element>
void long_rows_agree_with_a_sort() {
  constexpr int kVocab = 131072 + 1234;
  std::mt19937_64 random(9);
  const RowKind kinds[] = {RowKind::kAllEqual, RowKind::kRounded, RowKind::kClose,
                           RowKind::kUniform,  RowKind::kMasked,  RowKind::kGaussian};
  for (const RowKind kind : kinds) {
    for (const int64_t top_k : {0, 1000, 5000, 120000}) {
      Filters filters = {1.0f, 0.7f, top_k, kind == RowKind::kGaussian ? 0.01f : 0.0f};
      if (kind == RowKind::kClose) filters.temperature = 1e-4f;
      const Batch<Element> batch({make_row(kind, kVocab, random)}, 0);
      const SampleResult result = sample(batch, {filters}, 1, 8, true, kVocab);
      judge_row(batch, 0, filters, result, 8, describe(kind, filters, kVocab, 1));
      for (const Shape shape : {Shape(8), portable(8)}) {
        expect(sample(batch, {filters}, shape, 8, true, kVocab) == result, "long row, 8 blocks");
      }
    }
  }
}

// The second row in a batch and alone, with the same seed and offset.
void rows_do_not_affect_each_other() {
  std::mt19937_64 random(5);
  const std::vector<float> first = make_row(RowKind::kAllEqual, 5000, random);
  const std::vector<float> second = make_row(RowKind::kPeaked, 5000, random);
  std::vector<float> bad = second;
  bad[17] = std::numeric_limits<float>::quiet_NaN();
  Filters filters;
  filters.top_p = 0.9f;
  const SampleResult alone =
      sample(Batch<float>({second, second}, 0), {filters, filters}, 2, 3, true, 5000);
  for (const std::vector<float>& neighbour : {first, bad}) {
    const SampleResult both =
        sample(Batch<float>({neighbour, second}, 0), {filters, filters}, 1, 3, true, 5000);
    for (size_t i = 3; i < 6; ++i) expect(both.tokens[i] == alone.tokens[i], "batchmates");
  }
}

template <typename Element>
void invalid_rows_get_a_status() {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::mt19937_64 random(6);
  const std::vector<float> good = make_row(RowKind::kGaussian, 2500, random);
  for (const Shape shape : {Shape(1), Shape(4), portable(4)}) {
    const auto status = [&](const std::vector<float>& row, Filters filters, int64_t valid_vocab) {
      const SampleResult result =
          sample(Batch<Element>({row}, 0), {filters}, shape, 2, true, valid_vocab);
      const bool valid = result.status[0] == RowStatus::kValid;
      expect((result.tokens[1] >= 0) == valid && (result.kept[0] > 0) == valid &&
                 std::isnan(result.logprobs[1]) != valid,
             "tokens of an invalid row");
      return result.status[0];
    };
    for (const float top_p : {0.9f, 1.0f, 0.0f}) {
      Filters filters;
      filters.top_p = top_p;
      std::vector<float> row = good;
      row[1999] = nan;
      expect(status(row, filters, 2500) == RowStatus::kLogitNaN, "NaN");
      expect(status(row, filters, 1999) == RowStatus::kValid, "NaN beyond valid_vocab");
      row[3] = infinity;
      expect(status(row, filters, 2500) == RowStatus::kLogitNaN, "NaN before +inf");
      row[1999] = 0.0f;
      expect(status(row, filters, 2500) == RowStatus::kLogitPositiveInfinity, "+inf");
      expect(
          status(std::vector<float>(2500, -infinity), filters, 2500) == RowStatus::kNoFiniteLogit,
          "nothing finite");
      expect(status(good, filters, 0) == RowStatus::kValidVocabBelowOne, "no columns");
    }
    Filters filters;
    filters.temperature = -1.0f;
    expect(status(good, filters, 2500) == RowStatus::kTemperatureInvalid, "negative T");
    filters.temperature = nan;
    expect(status(good, filters, 2500) == RowStatus::kTemperatureInvalid, "NaN T");
    filters = {};
    filters.top_k = -1;
    expect(status(good, filters, 2500) == RowStatus::kTopKNegative, "negative k");
    filters = {};
    filters.top_p = nan;
    expect(status(good, filters, 2500) == RowStatus::kTopPNaN, "NaN P");
    filters = {};
    filters.min_p = nan;
    expect(status(good, filters, 2500) == RowStatus::kMinPNaN, "NaN min_p");
  }
}

}  // namespace

int main(int count, char** values) {
  const int trials = count > 1 ? std::atoi(values[1]) : 400;
  try {
    kernel_agrees_with_a_sort<float>(trials, 1);
    kernel_agrees_with_a_sort<cuda::BFloat16>(trials, 2);
    kernel_agrees_with_a_sort<cuda::Float16>(trials, 3);
    sums_do_not_overflow();
    long_rows_agree_with_a_sort<float>();
    long_rows_agree_with_a_sort<cuda::BFloat16>();
    rows_do_not_affect_each_other();
    invalid_rows_get_a_status<float>();
    invalid_rows_get_a_status<cuda::BFloat16>();
    invalid_rows_get_a_status<cuda::Float16>();
  } catch (const std::exception& error) {
    expect(false, error.what());
  }
  std::printf("emulated sample: %lld draws judged, %lld within rounding of a boundary\n",
              static_cast<long long>(judged_draws), static_cast<long long>(draws_at_a_boundary));
  std::printf("%s\n", failures == 0 ? "emulated sample: all passed" : "emulated sample: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
