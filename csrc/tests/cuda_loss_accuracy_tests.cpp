// What share of the allowed error the loss kernels take on the emulated device: the table of
// docs/loss-kernels.md. Every row counts twice: with P known to 2e-7, as masses are elsewhere, and,
// where no token's C is next to P, with P as it is.
#include <array>
#include <cstdlib>
#include <map>

#include "emulated_loss_gradient.h"
#include "loss_families.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;

constexpr float kTemperatures[] = {0.05f, 0.3f, 0.7f, 1.0f, 1.5f, 3.0f, 30.0f, 1e3f, 1e6f};
constexpr float kTopPs[] = {1e-3f,           0.1f, 0.5f, 0.9f, 0.999f, 0.9994507f, 0.9999f,
                            1.0f - 0x1p-24f, 1.0f};
// The op takes 1e-100 for a steepness of 0.
constexpr double kSteepness[] = {1e-100, 1.0, 30.0, 30.0, 50.0, 300.0, 10000.0};
constexpr double kCutSlack = 2e-7;

// Regimes of their own in the table.
const char* const kSteep = "steepness 10000";
const char* const kHairline = "all logits within 0.004 T";

struct Shares {
  LossShares around;  // for any P within kCutSlack
  LossShares exact;
  int exact_rows = 0;
};
std::map<std::string, Shares> worst;

// In one of four cases P is, to a float, where C of the label is.
LossInputs random_inputs(const std::vector<float>& row, std::mt19937_64& random) {
  LossInputs inputs;
  LossOptions& options = inputs.options;
  const float temperature = kTemperatures[random() % std::size(kTemperatures)];
  float top_p = kTopPs[random() % std::size(kTopPs)];
  options.steepness = kSteepness[random() % std::size(kSteepness)];
  options.exclusive = random() % 3 == 0;
  const int label = static_cast<int>(choose_label(row, temperature, top_p, random));
  if (random() % 4 == 0) top_p = static_cast<float>(mass_at(row, temperature, label, options));
  inputs.temperature = {temperature};
  inputs.top_p = {top_p};
  inputs.labels = {label};
  return inputs;
}

std::string regime_of(const char* family, const std::vector<float>& row, const LossInputs& inputs) {
  float low = std::numeric_limits<float>::infinity();
  float high = -low;
  for (const float logit : row) {
    if (std::isinf(logit)) continue;
    low = std::min(low, logit);
    high = std::max(high, logit);
  }
  const double span = static_cast<double>(high) - static_cast<double>(low);
  if (inputs.options.steepness > 300.0) return kSteep;
  return span > 0.0 && span < 0.004 * inputs.temperature[0] ? kHairline : family;
}

template <typename Element>
void judge_family(const LossFamily& family, int trials, std::mt19937_64& random) {
  for (int trial = 0; trial < trials; ++trial) {
    const int vocab = trial % 16 == 7 ? 30000 : 2 + static_cast<int>(random() % 4000);
    const Batch<Element> batch({family.make(vocab, random)}, 0);
    const std::vector<float>& row = batch.rows[0];
    const LossInputs inputs = random_inputs(row, random);
    const LossResult got = autodeco_loss(batch, inputs);
    const float results[5] = {got.losses[0], got.losses[1], got.gradients[0], got.gradients[1],
                              got.gradients[2]};
    Shares& shares = worst[regime_of(family.name, row, inputs)];
    const RowJudge judge(row, inputs.temperature[0], inputs.top_p[0],
                         static_cast<int>(inputs.labels[0]), inputs.options);
    shares.around.take(judge.shares(results, kCutSlack));
    if (judge.is_clear()) {
      shares.exact.take(judge.shares(results, 0.0));
      ++shares.exact_rows;
    }
    if (trial % 2 == 0) {
      const Upstream upstream(1, 0.0f, 1.0f);
      const LogitsGradient<Element> gradient = logits_gradient(batch, inputs, upstream);
      double& miss = shares.around.worst[LossShares::kOfLogits];
      miss = std::max(miss, miss_of_row(row, inputs, 0, upstream, gradient.values.data()));
    }
  }
}

// What a result may take of what is allowed, in the order of LossShares. Where loss-kernels.md says
// that more is missed, the table shows how much.
using Limits = std::array<double, LossShares::kResults>;

Limits limits_of(const std::string& regime) {
  constexpr double kShown = 1e12;  // neither infinite nor NaN
  return {1.0, 1.0, 1.0, 1.0, 1.0, regime == kSteep ? kShown : 1.0};
}

void report(const std::string& regime, const char* what, const LossShares& shares) {
  const Limits allowed = limits_of(regime);
  std::printf("%-28s %-12s", regime.c_str(), what);
  for (int i = 0; i < LossShares::kResults; ++i) {
    std::printf(" %9.2g", shares.worst[i]);
    expect(shares.worst[i] <= allowed[i], regime + " " + what + ", result " + std::to_string(i));
  }
  std::printf("\n");
}

}  // namespace

int main(int count, char** values) {
  const int trials = count > 1 ? std::atoi(values[1]) : 60;
  std::mt19937_64 random(count > 2 ? std::atoi(values[2]) : 1);
  try {
    for (const LossFamily& family : kLossFamilies) {
      judge_family<cuda::BFloat16>(family, trials, random);
      judge_family<float>(family, trials, random);
      judge_family<cuda::Float16>(family, trials, random);
    }
  } catch (const std::exception& error) {
    expect(false, error.what());
  }
  std::printf("%-28s %-12s %9s %9s %9s %9s %9s %9s\n", "share of what is allowed", "P within",
              "T loss", "P loss", "T loss dT", "P loss dT", "dP", "dlogits");
  for (const auto& [regime, shares] : worst) {
    report(regime, "2e-7", shares.around);
    report(regime, "0", shares.exact);
    expect(shares.exact_rows > 0, regime + ": rows where no C is next to P");
  }
  std::printf("%s\n", failures == 0 ? "emulated loss accuracy: all passed"
                                    : "emulated loss accuracy: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
