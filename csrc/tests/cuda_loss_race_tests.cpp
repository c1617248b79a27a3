// The kernels of the losses with one barrier removed at a time. Built with -fsanitize=thread.
#include "emulated_loss_gradient.h"
#include "emulated_races.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using emulation::Order;

// Rows that together take every path: counts and bins, heavy tokens and none, a crossing bin that
// is gathered, narrowed or of equal tokens, a second anchor, a softmax of the temperature loss
// alone.
template <typename Element>
void run_all_paths() {
  std::mt19937_64 random(11);
  const auto run_row = [&](const std::vector<float>& row, float temperature, float top_p) {
    const Batch<Element> batch({row}, 0);
    const int vocab = batch.vocab;
    const LossOracle oracle(batch.rows[0], 0);
    for (const int rank : {0, vocab / 2}) {
      LossInputs inputs;
      inputs.temperature = {temperature};
      inputs.top_p = {top_p};
      inputs.labels = {oracle.order[rank]};
      const LossResult got = autodeco_loss(batch, inputs);
      const LossOracle label(batch.rows[0], inputs.labels[0]);
      const LossOracle::Values wanted = label.at(temperature, top_p, inputs.options);
      for (int i = 0; i < 2; ++i) {
        expect(std::fabs(got.losses[i] - wanted.losses[i]) <= 2e-5 * wanted.losses[i] + 1e-15,
               "loss of a row of " + std::to_string(vocab));
      }
      const Upstream upstream(1, 1.0f, 1.0f);
      const LogitsGradient<Element> gradient = logits_gradient(batch, inputs, upstream);
      expect(miss_of_row(batch.rows[0], inputs, 0, upstream, gradient.values.data()) <= 1.0,
             "gradient of a row of " + std::to_string(vocab));
    }
  };
  const auto run = [&](RowKind kind, int vocab, float temperature, float top_p) {
    run_row(make_row(kind, vocab, random), temperature, top_p);
  };
  run_row(make_clusters(9000, random), 1.0f, 0.5f);
  run(RowKind::kPeaked, 2500, 0.8f, 0.9f);
  run(RowKind::kRounded, 2500, 1.0f, 0.6f);
  run(RowKind::kAllEqual, 9000, 1.0f, 0.5f);
  run(RowKind::kUniform, 9000, 1.0f, 0.5f);
  run(RowKind::kUniform, 9000, 100.0f, 0.9f);
  run(RowKind::kClose, 9000, 1.0f, 0.5f);
  run(RowKind::kClose, 9000, 1e-4f, 0.5f);
  run(RowKind::kConfident, 2500, 1.0f, 0.9f);
  run(RowKind::kAscending, 9000, 0.005f, 0.9f);
  run(RowKind::kHuge, 2500, 1.0f, 0.9f);
}

int run_paths(bool with_clusters) {
  if (!with_clusters) return EXIT_SUCCESS;  // one block a row: clusters change nothing
  for (const Order order : {Order::kForward, Order::kReverse}) {
    emulation::device.order = order;
    run_all_paths<float>();
    run_all_paths<cuda::BFloat16>();
  }
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int count, char** values) { return remove_every_barrier(count, values, &run_paths); }
