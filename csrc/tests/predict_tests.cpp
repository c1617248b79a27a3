// predict_parameters on the CPU, against the two heads in float64, on buffers with no spare byte.
#include <cstdlib>

#include "emulated_rows.h"
#include "isa.h"
#include "random_heads.h"

namespace autodeco::cpu::AUTODECO_ISA {
const KernelTable& kernels();
}

namespace {

using namespace autodeco;
using namespace autodeco::tests;

void predictions_are_those_of_the_heads() {
  std::mt19937_64 random(1);
  const int widths[] = {1, 7, 8, 33, 256, 700};
  for (int trial = 0; trial < 300; ++trial) {
    const int vocab = 1 + static_cast<int>(random() % (trial % 10 == 0 ? 5000 : 70));
    const int width = widths[random() % 6];
    const bool uses_statistics = trial % 3 != 0;
    const std::vector<float> row = make_row(RowKind::kGaussian, vocab, random);
    const RandomHead temperature_head(1, widths[random() % 6], random);
    const RandomHead top_p_head(1, width, random);
    const FeatureWeight feature_weight(width, uses_statistics ? 1 + kNumStats : 1, random);
    // Of one element: what is written beyond them is seen.
    std::vector<float> temperature(1), top_p(1);
    std::vector<RowStatus> status(1, RowStatus::kNoFiniteLogit);
    PredictParametersArguments arguments;
    arguments.logits = uses_statistics ? row.data() : nullptr;
    arguments.layout.num_rows = 1;
    arguments.layout.vocab = vocab;
    arguments.temperature_head = temperature_head.layers();
    arguments.top_p_head = top_p_head.layers();
    arguments.feature_weight = feature_weight.values.data();
    arguments.feature_weight_stride = feature_weight.stride;
    arguments.uses_statistics = uses_statistics;
    arguments.temperature = temperature.data();
    arguments.top_p = top_p.data();
    arguments.status = status.data();
    cpu::AUTODECO_ISA::kernels().predict_parameters(arguments, 0, 1);
    const double wanted = 2.0 * temperature_head.output(0);
    std::vector<double> features = {wanted};
    if (uses_statistics) {
      for (const double statistic : statistics_of(row, wanted)) features.push_back(statistic);
    }
    const std::string what = "trial " + std::to_string(trial);
    expect(status[0] == RowStatus::kValid, "status: " + what);
    expect(std::fabs(temperature[0] - wanted) <= 1e-6, "T: " + what);
    expect(std::fabs(top_p[0] - top_p_head.output(0, &feature_weight, features)) <= 5e-6,
           "P: " + what);
  }
}

}  // namespace

int main() {
  predictions_are_those_of_the_heads();
  std::printf("%s\n", failures == 0 ? "predictions: all passed" : "predictions: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
