// The training losses on the CPU where float32 would show: at the cut, next to P = 1, where they
// are steep. Compiled once per instruction set, like the kernels.
#include <cstdlib>

#include "native_isa.h"
#include "native_loss.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;

// Next to logits as large as these a token's distance from the maximum is lost, also in double.
void many_equals_of_large_logits_are_no_heavy_tokens() {
  for (const int vocab : {1500, 20000}) {
    const std::vector<float> row(vocab, 1e30f);
    Batch batch(row.data(), DType::kFloat32, 1, vocab);
    batch.labels[0] = vocab / 3;
    batch.run();
    const Exact exact = exact_losses(row, 1.0, 0.5, vocab / 3, batch.arguments.options);
    expect(is_near(batch.losses[1], exact.losses[1], 1e-5, 0.0), "large equals: loss");
    const std::vector<float> got = batch.gradient_of_logits<float>({0.0f, 1.0f});
    expect(std::isfinite(got[7]), "large equals: gradient of the logits");
  }
}

// Where P is as near C_y as float32 can be, y is head or tail, for the sums as for itself.
void a_label_on_the_edge_is_on_one_side() {
  std::mt19937_64 random(8);
  std::normal_distribution<float> normal;
  for (const int vocab : {500, 4000, 30000}) {
    for (int trial = 0; trial < 40; ++trial) {
      std::vector<float> row(vocab);
      const float step = trial % 2 == 0 ? 0.25f : 0.0f;
      for (float& logit : row) {
        const float value = normal(random);
        logit = step > 0.0f ? step * std::round(value / step) : value;
      }
      Batch batch(row.data(), DType::kFloat32, 1, vocab);
      batch.arguments.options.exclusive = trial % 4 > 1;
      const Oracle oracle(row, 1.0);
      double total = 0.0;
      for (const double weight : oracle.weight) total += weight;
      const int rank = static_cast<int>(random() % vocab);
      double mass = 0.0;
      for (int i = 0; i < rank; ++i) mass += oracle.weight[oracle.order[i]] / total;
      const int label = oracle.order[rank];
      if (!batch.arguments.options.exclusive) mass += oracle.weight[label] / total;
      batch.labels[0] = label;
      batch.top_p[0] = static_cast<float>(mass);
      batch.run();
      const auto has = [&](double top_p) {
        const Exact exact = exact_losses(row, 1.0, top_p, label, batch.arguments.options);
        return is_near(batch.gradients[2], exact.gradients[2], 1e-4, 2e-7 * exact.scales[2]) &&
               is_near(batch.gradients[1], exact.gradients[1], 1e-4, 1e-4 * exact.scales[1]);
      };
      expect(has(mass - 1e-12) || has(mass + 1e-12),
             "label on the edge, trial " + std::to_string(trial) + " vocab " +
                 std::to_string(vocab) + " rank " + std::to_string(rank));
    }
  }
}

// Relative to the value alone: neither a tail of a millionth of all mass nor a steep decay may show
// how float32 rounds.
void what_little_is_left_is_exact() {
  std::mt19937_64 random(9);
  std::normal_distribution<float> normal;
  int compared = 0;
  for (int trial = 0; trial < 60; ++trial) {
    const bool steep = trial % 2 == 1;
    const int vocab = trial % 3 == 0 ? 30000 : 2000;
    const float sizes[] = {1.0f, 5.0f, 8.0f};
    std::vector<float> row(vocab);
    for (float& logit : row) logit = sizes[random() % 3] * normal(random);
    Batch batch(row.data(), DType::kFloat32, 1, vocab);
    LossOptions& options = batch.arguments.options;
    const float masses[] = {0.9991f, 0.9999f, 0.999999f};
    const float any[] = {0.0f, 0.3f, 0.9f};
    if (steep) options.steepness = trial % 4 == 1 ? 300.0 : 10000.0;
    options.exclusive = trial % 5 == 0;
    const float temperature = trial % 7 < 3 ? 1.0f : 0.3f;
    const float top_p = steep ? any[random() % 3] : masses[random() % 3];
    const Oracle oracle(row, temperature);
    const int label = oracle.order[trial % 6 < 3 ? 0 : random() % 50];
    batch.temperature[0] = temperature;
    batch.top_p[0] = top_p;
    batch.labels[0] = label;
    batch.run();
    const Exact exact = exact_losses(row, temperature, top_p, label, options);
    if (exact.margin < 1e-5 * (1.0 - static_cast<double>(top_p))) continue;
    ++compared;
    const std::string what = "trial " + std::to_string(trial) + " P " + std::to_string(top_p) +
                             " steepness " + std::to_string(options.steepness);
    expect(is_near(batch.losses[1], exact.losses[1], 1e-5, 1e-14), "little left: " + what);
    expect(is_near(batch.gradients[1], exact.gradients[1], 1e-4, 1e-5 * exact.scales[1] + 1e-25),
           "little left, gradient by T: " + what);
    expect(is_near(batch.gradients[2], exact.gradients[2], 1e-4, 1e-25),
           "little left, gradient by P: " + what);
  }
  expect(compared > 40, "most rows are compared");
}

// Neither the quotient of what the label keeps and of what the others do may overflow, nor what it
// is compared with.
void a_label_decayed_to_next_to_nothing_has_the_largest_loss() {
  std::vector<float> row(3000);
  for (size_t i = 0; i < row.size(); ++i) row[i] = -0.001f * static_cast<float>(i);
  Batch batch(row.data(), DType::kFloat32, 1, static_cast<int64_t>(row.size()));
  batch.top_p[0] = 0.0625f;
  batch.labels[0] = 600;
  double total = 0.0;
  double mass = 0.0;
  for (size_t i = 0; i < row.size(); ++i) total += std::exp(static_cast<double>(row[i]));
  for (int i = 0; i <= 600; ++i) mass += std::exp(static_cast<double>(row[i])) / total;
  for (const double exponent : {600.0, 700.0, 704.0, 707.9, 709.0, 800.0}) {
    batch.arguments.options.steepness = exponent / (mass - 0.0625);
    batch.run();
    const Exact exact = exact_losses(row, 1.0, 0.0625, 600, batch.arguments.options);
    expect(is_near(batch.losses[1], exact.losses[1], 1e-5, 0.0),
           "label of a decay of e^-" + std::to_string(exponent));
  }
}

// Next to the largest logits all dust is in a slot of no width, also where differences times the
// unit of narrow slots overflow.
void dust_without_width_has_a_slot() {
  std::vector<float> row(1000, 3e38f);
  for (size_t i = 0; i < row.size(); i += 2) row[i] = -1e30f * static_cast<float>(i);
  for (const float temperature : {1e17f, 2.5e17f, 1.1e18f, 2e18f, 1e38f}) {
    Batch batch(row.data(), DType::kFloat32, 1, static_cast<int64_t>(row.size()));
    batch.temperature[0] = temperature;
    batch.top_p[0] = 0.9995f;
    batch.labels[0] = 1;
    batch.run();
    const Exact exact = exact_losses(row, temperature, 0.9995f, 1, batch.arguments.options);
    expect(is_near(batch.losses[1], exact.losses[1], 1e-5, 0.0), "dust without width: loss");
    expect(is_near(batch.gradients[2], exact.gradients[2], 1e-4, 2e-7 * exact.scales[2]),
           "dust without width: gradient by P");
  }
}

}  // namespace

int main() {
  if (!processor_has_isa()) return kSkipped;
  many_equals_of_large_logits_are_no_heavy_tokens();
  a_label_on_the_edge_is_on_one_side();
  what_little_is_left_is_exact();
  a_label_decayed_to_next_to_nothing_has_the_largest_loss();
  dust_without_width_has_a_slot();
  std::printf("%s\n", failures == 0 ? "loss accuracy: all passed" : "loss accuracy: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
