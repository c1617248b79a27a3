// Native tests of the torch-free half: random numbers, order keys, and the CPU kernels on buffers
// with no spare byte on either side, so that AddressSanitizer sees every stray access.
// Compiled once per instruction set, like the kernels; AUTODECO_ISA names it.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "autodeco/order.h"
#include "autodeco/philox.h"
#include "expect.h"
#include "kept_set.h"
#include "native_isa.h"
#include "native_rows.h"

namespace {

using namespace autodeco;
using namespace autodeco::cpu::AUTODECO_ISA;
using namespace autodeco::tests;

// Known answers published with the Random123 library.
void philox_matches_published_vectors() {
  const PhiloxBlock zero = philox4x32_10({{0, 0, 0, 0}}, 0, 0);
  expect(zero.word[0] == 0x6627e8d5u && zero.word[1] == 0xe169c58du &&
             zero.word[2] == 0xbc57ac4cu && zero.word[3] == 0x9b00dbd8u,
         "philox of zeros");
  const uint32_t f = 0xffffffffu;
  const PhiloxBlock ones = philox4x32_10({{f, f, f, f}}, f, f);
  expect(ones.word[0] == 0x408f276du && ones.word[1] == 0x41c83b0eu &&
             ones.word[2] == 0xa20bc7c6u && ones.word[3] == 0x6d5451fdu,
         "philox of ones");
}

void order_keys_order_like_floats() {
  const float infinity = std::numeric_limits<float>::infinity();
  const float ascending[] = {-infinity, -3e38f, -1.0f, -1e-45f, 0.0f, 1e-45f, 1.0f, 3e38f};
  for (size_t i = 1; i < std::size(ascending); ++i) {
    expect(order_key(ascending[i - 1]) < order_key(ascending[i]), "order keys ascend");
    expect(logit_of_key(order_key(ascending[i])) == ascending[i], "keys have an inverse");
  }
  expect(order_key(-0.0f) == order_key(0.0f), "-0.0 is +0.0");
}

std::vector<int64_t> sorted_order(const std::vector<float>& row) {
  std::vector<int64_t> order(row.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return row[a] > row[b]; });
  return order;
}

// Length of the kept prefix from a full sort in double; top_p cuts within 2e-6 may go either way.
bool kept_length_is_right(const std::vector<float>& row, const FilterParameters& filters,
                          int64_t kept) {
  const double temperature = filters.temperature.value;
  const double top_p = filters.top_p.value;
  const double min_p = filters.min_p.value;
  if (temperature == 0.0) return kept == 1;
  const std::vector<int64_t> order = sorted_order(row);
  int64_t limit = std::count_if(row.begin(), row.end(), [](float l) { return l > -kInfinity; });
  if (filters.top_k.value > 0) limit = std::min(limit, filters.top_k.value);
  std::vector<double> cumulative(static_cast<size_t>(limit));
  double sum = 0.0;
  int64_t likely = 0;  // how many min_p leaves
  for (int64_t i = 0; i < limit; ++i) {
    const double below_max = static_cast<double>(row[order[i]]) - row[order[0]];
    sum += std::exp(below_max / temperature);
    cumulative[i] = sum;
    if (min_p <= 0.0 || below_max >= temperature * std::log(min_p)) ++likely;
  }
  likely = std::max(likely, int64_t{1});
  if (kept < 1 || kept > likely) return false;
  if (top_p >= 1.0) return kept == likely;
  const bool enough = kept == likely || cumulative[kept - 1] / sum >= top_p - 2e-6;
  const bool shortest = kept == 1 || cumulative[kept - 2] / sum < top_p + 2e-6;
  return enough && shortest;
}

// Masses are summed up relative to a block before; how far the blocks lie apart must not matter.
void masses_of_blocks_are_right_in_any_order() {
  std::mt19937_64 random(4);
  std::normal_distribution<float> normal;
  const std::vector<std::vector<float>> orders_of_offsets = {
      {0, 1, 2, 3, 4, 5, 6, 30, 60, 100, 130, 3e3f},
      {100, 60, 30, 5, 4, 3, 2, 1, 0, -1e9f},
      {0, -50, 2.7f, -80, 2.9f, 5.5f, 5, 60, 59},
      {-3e38f, 0, -1e30f, 1, -2, 2, 20, 19},
      {-kInfinity, 0, -kInfinity, 3, 6, -kInfinity}};
  for (const std::vector<float>& offsets : orders_of_offsets) {
    std::vector<float> logits;
    for (const float offset : offsets) {
      for (int i = 0; i < kBlock; ++i) logits.push_back(offset + normal(random));
    }
    logits.resize(logits.size() - 100);  // the last block is short
    const Row<float> row(logits.data(), static_cast<int64_t>(logits.size()));
    const float max = *std::max_element(logits.begin(), logits.end());
    for (const float temperature : {0.1f, 1.0f, 2.0f}) {
      const Scaling scaling(temperature);
      const auto summary = std::make_unique<RowSummary>();
      summarize(row, &scaling, *summary);
      expect(summary->status == RowStatus::kValid && summary->max == max, "the maximum is right");
      std::vector<double> masses(offsets.size());
      for (size_t i = 0; i < logits.size(); ++i) {
        masses[i / kBlock] +=
            std::exp((static_cast<double>(logits[i]) - max) / temperature) * kMassScale;
      }
      for (size_t block = 0; block < masses.size(); ++block) {
        const double error = static_cast<double>(summary->block_mass[block]) - masses[block];
        expect(std::abs(error) <= 1 + 2e-6 * masses[block], "masses of blocks are right");
      }
    }
  }
}

// Where the sample sees no token that matters, histograms find the kept set.
void a_blind_sample_ends_in_histograms() {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<float> uniform;
  constexpr int kColumns = 40000;
  const Scaling scaling(1.0f);
  const auto search = std::make_unique<Search>();
  std::vector<float> logits(kColumns);
  for (float& logit : logits) logit = uniform(random);
  // Not sampled: the maximum, and so the places, are what they were.
  search->summary.max = logits[20] = 1.5f;
  search->summary.argmax = 20;
  for (int attempt = 0; attempt < 3; ++attempt) {
    const uint32_t shift = Sample::shift_of(search->summary, attempt);
    for (int number = 0; number * kBlock < kColumns; ++number) {
      const int begin = number * kBlock;
      const int padded = std::min(kBlock, (kColumns - begin + kStep - 1) / kStep * kStep);
      const int first = begin + Sample::first_column(number, padded, shift);
      for (int column = first; column < std::min(kColumns, first + Sample::kColumns); ++column) {
        if (column != 20) logits[column] = -100.0f;
      }
    }
  }
  const Row<float> row(logits.data(), kColumns);
  for (const float top_p : {0.3f, 0.5f, 0.9f}) {
    summarize(row, &scaling, search->summary);
    // Only a histogram of the row has so many bins.
    constexpr uint32_t kUntouched = 0xabcdefu;
    search->coarse.count[1000] = kUntouched;
    FilterParameters filters;
    filters.temperature.value = 1.0f;
    filters.top_p.value = top_p;
    filters.valid_vocab.value = kColumns;
    const KeptSet kept = KeptSetFinder(row, scaling, *search).find(filters, 0);
    expect(search->coarse.count[1000] != kUntouched, "the histogram is used");
    expect(kept_length_is_right(logits, filters, kept.count), "and right");
  }
}

// Every op of the sampler keeps the same tokens, those of a sort.
void row_agrees_with_a_sort(const LastRow& row, int64_t seed, int64_t num_samples) {
  const Draw drawn = draw(row, seed, num_samples);
  expect(drawn.status == RowStatus::kValid, "row is valid");
  expect(kept_length_is_right(row.columns, row.filters, drawn.kept), "length of the kept prefix");

  const auto [logits_status, logits] = filtered(row);
  expect(logits_status == RowStatus::kValid, "row is valid for filter_logits");
  const std::vector<int64_t> order = sorted_order(row.columns);
  for (int64_t rank = 0; rank < std::ssize(order); ++rank) {
    expect(std::isfinite(logits[order[rank]]) == (rank < drawn.kept), "kept set is a prefix");
  }
  std::vector<int32_t> finite;
  for (int32_t column = 0; column < std::ssize(logits); ++column) {
    if (std::isfinite(logits[column])) finite.push_back(column);
  }
  expect(std::ssize(finite) == drawn.kept, "nothing is kept beyond the columns that exist");
  const auto [kept_status, ids] = kept_columns(row);
  expect(kept_status == RowStatus::kValid && ids == finite, "the kept columns");
  for (int64_t i = 0; i < num_samples; ++i) {
    const int64_t token = drawn.tokens[i];
    expect(token >= 0 && token < std::ssize(row.columns) && std::isfinite(logits[token]),
           "token is kept");
    expect(std::isfinite(drawn.logprobs[i]) && std::isfinite(drawn.raw_logprobs[i]),
           "logprobs are finite");
  }

  const auto [stats_status, stats] = stats_of(row);
  expect(stats_status == RowStatus::kValid && stats[0] > 0.0f && stats[0] <= 1.0f &&
             stats[3] >= stats[0],
         "stats are in range");
}

void kernels_agree_with_a_sort() {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  const auto one_in = [&](uint64_t n) { return random() % n == 0; };
  for (int trial = 0; trial < 3000; ++trial) {
    const int64_t vocab = 1 + static_cast<int64_t>(random() % (trial % 100 == 0  ? 40000
                                                               : trial % 10 == 0 ? 5000
                                                                                 : 70));
    const int64_t existing = one_in(4) ? 1 + static_cast<int64_t>(random() % vocab) : vocab;
    std::vector<float> logits(static_cast<size_t>(existing));
    const bool tied = one_in(3);
    const bool masked = one_in(4);
    for (float& logit : logits) {
      logit = 3.0f * normal(random);
      if (tied) logit = std::round(logit);
      if (masked && one_in(2)) logit = -kInfinity;
    }
    if (masked) logits[random() % logits.size()] = 0.0f;
    const int64_t num_rows = one_in(2) ? 1 : 2;
    LastRow row(logits, vocab, num_rows, kDTypes[trial % 3]);
    FilterParameters& filters = row.filters;
    filters.temperature.value = one_in(20) ? 0.0f : 0.1f + static_cast<float>(random() % 20) * 0.1f;
    filters.top_p.value = static_cast<float>(random() % 110) * 0.01f + 1e-3f;
    filters.top_k.value = one_in(2) ? static_cast<int64_t>(random() % 40) : 0;
    filters.min_p.value = one_in(3) ? static_cast<float>(random() % 1010) * 1e-3f : 0.0f;
    row_agrees_with_a_sort(row, static_cast<int64_t>(random()), 1 + trial % 100);
  }
}

// Every op says why, and leaves nothing of its output as it was.
void row_is_refused(const LastRow& row, RowStatus why) {
  constexpr int64_t kSamples = 3;
  const Draw drawn = draw(row, 5, kSamples);
  expect(drawn.status == why && drawn.kept == 0 && std::isnan(drawn.log_kept_mass),
         "sample says why");
  for (int64_t i = 0; i < kSamples; ++i) {
    expect(
        drawn.tokens[i] == -1 && std::isnan(drawn.logprobs[i]) && std::isnan(drawn.raw_logprobs[i]),
        "no token is drawn");
  }
  const auto [logits_status, logits] = filtered(row);
  expect(logits_status == why, "filter_logits says why");
  for (const float logit : logits) expect(logit == -kInfinity, "nothing but filter_value");
  const auto [kept_status, ids] = kept_columns(row);
  expect(kept_status == why && ids.empty(), "kept_indices says why");
  const auto [stats_status, stats] = stats_of(row);
  expect(stats_status == why, "distribution_stats says why");
  for (const float value : stats) expect(std::isnan(value), "no stats");
}

void invalid_rows_are_refused() {
  for (const DType dtype : kDTypes) {
    for (const int64_t columns : {1, 63, 512, 700}) {
      std::vector<float> logits(static_cast<size_t>(columns), -kInfinity);
      row_is_refused({logits, 700, 2, dtype}, RowStatus::kNoFiniteLogit);
      logits[0] = 1.0f;
      LastRow row(logits, 700, 2, dtype);
      row.filters.temperature.value = -1.0f;
      row_is_refused(row, RowStatus::kTemperatureInvalid);
      logits.back() = kNaN;
      row_is_refused({logits, 700, 2, dtype}, RowStatus::kLogitNaN);
      logits.back() = kInfinity;
      row_is_refused({logits, 700, 2, dtype}, RowStatus::kLogitPositiveInfinity);
    }
  }
}

// The buffer of the ids is exact: one written past the capacity is an error of the sanitizer.
void kept_ids_stay_within_their_capacity() {
  std::mt19937_64 random(2);
  std::normal_distribution<float> normal;
  const cpu::KernelTable& kernels = cpu::AUTODECO_ISA::kernels();
  constexpr int64_t kRows = 3;
  for (int trial = 0; trial < 12; ++trial) {
    const int64_t vocab = std::array{1, 17, 512, 1300}[trial % 4];
    const DType dtype = kDTypes[trial / 4];
    std::vector<float> logits(static_cast<size_t>(kRows * vocab));
    for (float& logit : logits) logit = std::round(3.0f * normal(random));
    KeptIndicesArguments arguments;
    const std::vector<std::byte> memory = stored(logits, dtype);
    arguments.logits = memory.data();
    arguments.dtype = dtype;
    arguments.layout.num_rows = arguments.layout.sizes[0] = kRows;
    arguments.layout.vocab = arguments.layout.strides[0] = vocab;
    arguments.layout.num_dims = 1;
    arguments.filters.temperature.value = 1.0f;
    arguments.filters.top_p.value = 1.0f;
    arguments.filters.top_k.value = (vocab + 1) / 2;
    arguments.filters.valid_vocab.value = vocab;
    std::vector<RowStatus> status(kRows, RowStatus::kNoFiniteLogit);
    std::vector<LastKept> last(kRows);
    std::vector<int64_t> offsets(kRows + 1);
    arguments.status = status.data();
    arguments.last = last.data();
    arguments.offsets = offsets.data();
    kernels.count_kept(arguments, 0, kRows);
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
    expect(offsets.back() == kRows * ((vocab + 1) / 2), "exactly k of every row");

    std::vector<int32_t> wanted;
    for (int64_t row = 0; row < kRows; ++row) {
      const std::vector<int64_t> order =
          sorted_order({logits.begin() + row * vocab, logits.begin() + (row + 1) * vocab});
      wanted.insert(wanted.end(), order.begin(), order.begin() + (vocab + 1) / 2);
      std::sort(wanted.end() - (vocab + 1) / 2, wanted.end());
    }
    for (const int64_t capacity : {int64_t{0}, offsets[1] - 1, offsets[1], offsets[2] + 1,
                                   offsets[3] - 1, offsets[3], offsets[3] + 9}) {
      std::vector<int32_t> ids(static_cast<size_t>(capacity), -1);
      arguments.capacity = capacity;
      arguments.ids = ids.data();
      kernels.write_kept(arguments, 0, kRows);
      for (size_t i = 0; i < ids.size(); ++i) {
        expect(ids[i] == (i < wanted.size() ? wanted[i] : -1), "ids up to the capacity");
      }
    }
  }
}

}  // namespace

int main() {
  if (!autodeco::tests::processor_has_isa()) return autodeco::tests::kSkipped;
  philox_matches_published_vectors();
  order_keys_order_like_floats();
  masses_of_blocks_are_right_in_any_order();
  a_blind_sample_ends_in_histograms();
  kernels_agree_with_a_sort();
  invalid_rows_are_refused();
  kept_ids_stay_within_their_capacity();
  std::printf("%s\n", failures == 0 ? "native tests: all passed" : "native tests: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
