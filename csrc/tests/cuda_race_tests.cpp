// Removes one barrier of the kernels at a time and requires that ThreadSanitizer, the emulation or
// the results notice. Built with -fsanitize=thread.
#include <cstdlib>
#include <set>

#include "emulated_kept.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using emulation::Order;

// Rows that together take every path: list and fallback, ties, one token, unfiltered, infos.
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
}

int run_paths(bool with_clusters) {
  for (const Order order : {Order::kForward, Order::kReverse}) {
    emulation::device.order = order;
    if (with_clusters) {
      run_all_paths<float>(1);
      run_all_paths<cuda::BFloat16>(2);
    } else {
      run_all_paths<cuda::BFloat16>(portable(2));
    }
  }
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

constexpr const char* kWithoutClusters = "without-clusters";

// Whether a process without this barrier fails.
bool is_noticed(const char* program, const emulation::BarrierSite& site, bool with_clusters) {
  const std::string command = "TSAN_OPTIONS=halt_on_error=1:exitcode=66 " + std::string(program) +
                              " " + site.file + " " + std::to_string(site.line) + " " +
                              (with_clusters ? "" : kWithoutClusters) + " >/dev/null 2>&1";
  const bool noticed = std::system(command.c_str()) != 0;
  const std::string file = site.file;
  std::fflush(stdout);
  std::printf("%s without the barrier at %s:%u%s\n", noticed ? "caught " : "MISSED ",
              file.substr(file.rfind('/') + 1).c_str(), site.line,
              with_clusters ? "" : ", no clusters");
  return noticed;
}

}  // namespace

// Without an argument: all barriers in place, then a process per removed barrier. What blocks of a
// team meet in is removed once with clusters and once without.
int main(int count, char** values) {
  if (count > 2) {
    emulation::device.removed_file = values[1];
    emulation::device.removed_line = static_cast<unsigned>(std::atoi(values[2]));
    try {
      return run_paths(count == 3);
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
      return EXIT_FAILURE;
    }
  }
  if (run_paths(true) != EXIT_SUCCESS) return EXIT_FAILURE;
  if (run_paths(false) != EXIT_SUCCESS) return EXIT_FAILURE;
  // A process that removes nothing finds nothing.
  if (is_noticed(values[0], {"nowhere", 1, false, true, true}, true)) return EXIT_FAILURE;
  int removed = 0;
  int missed = 0;
  for (int i = 0; i < emulation::device.num_sites; ++i) {
    const emulation::BarrierSite site = emulation::device.sites[i];
    for (const bool with_clusters : {true, false}) {
      // Without clusters, what no launch with them has removed already.
      const bool is_new = site.between_blocks || !site.met_with_clusters;
      if (with_clusters ? !site.met_with_clusters : !site.met_without_clusters || !is_new) continue;
      ++removed;
      missed += !is_noticed(values[0], site, with_clusters);
    }
  }
  std::printf("emulated races: %d barriers removed, %d without notice\n", removed, missed);
  return missed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
