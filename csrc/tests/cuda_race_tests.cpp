// Removes one barrier of the kernels at a time and requires that ThreadSanitizer, the emulation or
// the results notice. Built with -fsanitize=thread.
#include "emulated_kept.h"
#include "emulated_predict.h"
#include "emulated_races.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using emulation::Order;

// Rows that together take every path: list and fallback, ties, one token, unfiltered, infos,
// predictions that read the row and that do not.
template <typename Element>
void run_all_paths(Shape shape) {
  std::mt19937_64 random(11);
  const auto run = [&](RowKind kind, int vocab, Filters filters) {
    const Batch<Element> batch({make_row(kind, vocab, random)}, 0);
    const SampleResult result = sample(batch, {filters}, shape, 2, true, vocab);
    const Oracle oracle(batch.rows[0], filters.temperature == 0.0f ? 1.0f : filters.temperature);
    expect(oracle.length_is_right(filters, result.kept[0]), "kept set");
    expect(result.tokens[0] >= 0 && result.tokens[0] < vocab, "token");
    std::vector<RowStatus> status;
    const std::vector<float> filtered = filter_logits(batch, filters, shape, vocab, status);
    const auto kept = std::count_if(filtered.begin(), filtered.end(),
                                    [](float logit) { return std::isfinite(logit); });
    expect(kept == result.kept[0], "filter_logits keeps what sample keeps");
    const KeptResult kept_ids = kept_indices(batch, filters, shape, vocab);
    expect(kept_ids.offsets[1] == kept, "kept_indices keeps what filter_logits keeps");
    bool in_place = true;
    for (size_t i = 0; i < kept_ids.ids.size(); ++i) {
      const int32_t id = kept_ids.ids[i];
      in_place &= id >= 0 && id < vocab && std::isfinite(filtered[id]) &&
                  (i == 0 || kept_ids.ids[i - 1] < id);
    }
    expect(in_place, "ids of kept_indices");
    const std::vector<float> stats = distribution_stats(batch, 1.0f, shape, status);
    expect(stats[0] > 0.0f && stats[3] >= stats[0] && stats[1] >= 0.0f && stats[2] >= 0.0f,
           "statistics");
  };
  run(RowKind::kPeaked, 2500, {0.8f, 0.9f, 40, 1e-4f});
  run(RowKind::kRounded, 2500, {1.0f, 0.6f, 0, 0.0f});
  run(RowKind::kAllEqual, 9000, {1.0f, 0.5f, 0, 0.0f});
  run(RowKind::kUniform, 9000, {1.0f, 0.5f, 5000, 0.0f});
  run(RowKind::kUniform, 9000, {1.0f, 0.9f, 50, 0.0f});
  run(RowKind::kAllEqual, 9000, {1.0f, 0.9f, 4000, 0.0f});
  run(RowKind::kHalf, 9000, {1.0f, 0.9f, 0, 0.0f});
  run(RowKind::kConfident, 2500, {1.0f, 0.9f, 0, 1e-3f});
  run(RowKind::kGaussian, 2500, {0.0f, 1.0f, 0, 0.0f});
  run(RowKind::kGaussian, 2500, {1.0f, 1.0f, 0, 0.0f});
  // More segments than threads: scans in several rounds.
  if (shape.blocks == 1) run(RowKind::kGaussian, 70000, {1.0f, 1.0f, 0, 0.0f});
  const Batch<Element> batch({make_row(RowKind::kPeaked, 2500, random)}, 0);
  for (const Features features : {Features::kTemperature, Features::kStatistics}) {
    const RandomHeads heads(1, 70, 33, true, features, random);
    judge_prediction(batch, heads, predict(batch, heads.arguments(), shape), "removed barriers");
  }
}

// The last digit of 32-bit keys per unit of several segments, by two blocks. Too long to be run for
// every barrier that is removed.
void run_in_units() {
  constexpr int kVocab = 70000;
  static_assert(cuda::last_digit_of<float>(cuda::units_of(kVocab, 10)).unit_shift > 0);
  std::mt19937_64 random(11);
  const Batch<float> batch({make_row(RowKind::kUniform, kVocab, random)}, 0);
  const Filters filters = {1.0f, 0.5f, 5000, 0.0f};
  const SampleResult result = sample(batch, {filters}, 2, 2, true, kVocab);
  expect(Oracle(batch.rows[0], 1.0f).length_is_right(filters, result.kept[0]), "kept set in units");
}

int run_paths(bool with_clusters) {
  for (const Order order : {Order::kForward, Order::kReverse}) {
    emulation::device.order = order;
    if (with_clusters) {
      run_all_paths<float>(1);
      run_all_paths<cuda::BFloat16>(2);
      if (*emulation::device.removed_file == '\0') run_in_units();
    } else {
      run_all_paths<cuda::Float16>(portable(2));
    }
  }
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int count, char** values) { return remove_every_barrier(count, values, &run_paths); }
