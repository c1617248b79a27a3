// How much of what is allowed the loss kernels are off by, on the emulated device: the tables of
// docs/kernels.md.
#include <cstdlib>
#include <map>

#include "emulated_loss_gradient.h"
#include "loss_families.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;

constexpr float kTemperatures[] = {0.05f, 0.3f, 0.7f, 1.0f, 1.5f, 3.0f, 30.0f, 1e3f, 1e6f};
constexpr float kTopPs[] = {1e-3f,      0.1f,    0.5f,          0.9f, 0.999f,
                            0.9994507f, 0.9999f, 1.0f - 0x1p-24f, 1.0f};
constexpr double kSteepness[] = {1e-100, 1.0, 30.0, 30.0, 50.0, 300.0, 10000.0};

struct Tables {
  std::map<std::string, LossShares> rows[5];
  void take(int table, const std::string& name, const LossShares& shares) {
    rows[table][name].take(shares);
  }
};

std::string named(const char* what, double value) {
  char text[60];
  std::snprintf(text, sizeof text, "%s %.8g", what, value);
  return text;
}

template <typename Element>
void judge_families(int trials, uint64_t seed, double slack, Tables& tables, bool with_logits) {
  std::mt19937_64 random(seed);
  for (const LossFamily& family : kLossFamilies) {
    for (int trial = 0; trial < trials; ++trial) {
      const int vocab = trial % 16 == 7 ? 30000 : 2 + static_cast<int>(random() % 4000);
      const Batch<Element> batch({family.make(vocab, random)}, 0);
      LossInputs inputs;
      LossOptions& options = inputs.options;
      const float temperature = kTemperatures[random() % std::size(kTemperatures)];
      float top_p = kTopPs[random() % std::size(kTopPs)];
      options.steepness = kSteepness[random() % std::size(kSteepness)];
      options.exclusive = random() % 3 == 0;
      const int label =
          static_cast<int>(choose_label(batch.rows[0], temperature, top_p, random));
      if (random() % 4 == 0) {  // where C of the label is
        const Oracle oracle(batch.rows[0], temperature);
        double total = 0.0, mass = 0.0;
        for (const double weight : oracle.weight) total += weight;
        for (const int i : oracle.order) {
          if (i == label && options.exclusive) break;
          mass += oracle.weight[i];
          if (i == label) break;
        }
        top_p = static_cast<float>(std::min(mass / total, 1.0));
      }
      inputs.temperature = {temperature};
      inputs.top_p = {top_p};
      inputs.labels = {label};
      const LossResult got = autodeco_loss(batch, inputs);
      const float results[5] = {got.losses[0], got.losses[1], got.gradients[0], got.gradients[1],
                                got.gradients[2]};
      LossShares shares =
          shares_of_row(batch.rows[0], temperature, top_p, label, options, results, slack);
      if (with_logits && options.steepness <= 300.0 && trial % 2 == 0) {
        const Upstream upstream(1, 0.0f, 1.0f);
        const LogitsGradient<Element> gradient = logits_gradient(batch, inputs, upstream);
        shares.worst[5] =
            miss_of_row(batch.rows[0], inputs, 0, upstream, gradient.values.data());
      }
      if (slack == 0.0) {
        const Exact e = exact_losses(batch.rows[0], temperature, top_p, label, options);
        if (e.margin < std::max(1e-5 * (1.0 - (double)top_p), 3e-14)) continue;
      }
      for (int i = 0; i < 6; ++i) {
        if (shares.worst[i] > 1.0 && std::getenv("VERBOSE")) {
          const Exact e = exact_losses(batch.rows[0], temperature, top_p, label, options);
          std::printf("MISS result %d share %.3g: %s trial %d vocab %d dtype %d T %g P %.9g a %g excl %d margin %.2g got %.9g\n", i, shares.worst[i],
                      family.name, trial, vocab, (int)sizeof(Element), temperature, top_p, options.steepness, options.exclusive, e.margin, i < 5 ? results[i] : 0.0f);
          std::printf("   exact %.9g %.9g %.9g %.9g %.9g\n", e.losses[0], e.losses[1], e.gradients[0], e.gradients[1], e.gradients[2]);
        }
      }
      tables.take(0, family.name, shares);
      tables.take(1, named("a", options.steepness), shares);
      bool listed = false;
      for (float p : kTopPs) listed |= p == top_p;
      tables.take(2, listed ? named("P", top_p) : "P on C", shares);
      tables.take(3, named("T", temperature), shares);
      tables.take(4, sizeof(Element) == 4 ? "fp32" : std::is_same_v<Element, cuda::Float16> ? "fp16" : "bf16", shares);
    }
  }
}

}  // namespace

int main(int count, char** values) {
  const int trials = count > 1 ? std::atoi(values[1]) : 100;
  const double slack = count > 2 ? std::atof(values[2]) : 2e-7;
  const int seed = count > 3 ? std::atoi(values[3]) : 1;
  Tables tables;
  judge_families<cuda::BFloat16>(trials, seed, slack, tables, true);
  judge_families<float>(trials, seed + 1, slack, tables, true);
  judge_families<cuda::Float16>(trials, seed + 2, slack, tables, true);
  std::printf("%-20s %9s %9s %9s %9s %9s %9s\n", "", "T loss", "loss", "T dT", "dT", "dP", "dlogits");
  for (const auto& table : tables.rows) {
    for (const auto& [name, shares] : table) {
      std::printf("%-20s", name.c_str());
      for (const double worst : shares.worst) std::printf(" %9.3g", worst);
      std::printf("\n");
    }
    std::printf("\n");
  }
}
