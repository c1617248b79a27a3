// How often the CPU training losses read a row: counted, printed by kind of row, and bounded. With
// an argument, the table is in Markdown (docs/architecture.md).
#include "counted_rows.h"

// After what it counts.
#include "autodeco_loss_impl.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using namespace autodeco::cpu::AUTODECO_ISA;

// The most that was seen. A row can take 1 for the sums, 1 for the list, 1.3 for a guess with its
// sample, then what is wrong with both: 1 for the light groups, 1 for the dust, and to divide a
// group up to 3 times 2 until it fits the list. That would be 11.3; no row here needs all of it.
constexpr double kMost = 9.4;

double reads_of_losses(const Logits& logits, float temperature, float top_p, int64_t label) {
  AutodecoLossArguments arguments;
  arguments.layout.vocab = kVocab;
  arguments.temperature = &temperature;
  arguments.top_p = &top_p;
  arguments.labels = &label;
  static_cast<void>(&autodeco_loss_rows);  // otherwise unused here
  bool counted[2] = {true, true};
  RowLosses result;
  RowStatus status = RowStatus::kNoFiniteLogit;
  const double found = count_reads(logits, [&](const Row<Counted>& row) {
    status = losses_of_row(arguments, 0, row, counted, result);
  });
  if (status != RowStatus::kValid || !(result.losses[1] > -1e-6)) {
    std::printf("FAILED: a row is invalid\n");
    std::exit(EXIT_FAILURE);
  }
  return found;
}

}  // namespace

int main(int count, char**) {
  const bool markdown = count > 1;
  bool failed = false;
  const float masses[] = {0.5f, 0.9f, 0.99f, 1.0f};
  if (markdown) std::printf("| row | P 0.5 | 0.9 | 0.99 | 1 |\n|---|---|---|---|---|\n");
  const auto print = [&](const std::vector<Kind>& kinds) {
    for (const Kind& kind : kinds) {
      std::printf(markdown ? "| %s |" : "%-34s", kind.name);
      const int64_t label = std::max_element(kind.row.begin(), kind.row.end()) - kind.row.begin();
      for (const float top_p : masses) {
        double least = 1e9;
        double most = 0;
        for (const float temperature : {0.3f, 0.7f, 1.0f, 1.5f}) {
          const double found = reads_of_losses(kind.row, temperature, top_p, label);
          least = std::min(least, found);
          most = std::max(most, found);
        }
        std::printf(markdown ? " %.1f–%.1f |" : "  %4.1f ..%5.1f", least, most);
        if (most > kMost) {
          std::printf("\nFAILED: a row is read %.2f times, at most %.2f are allowed\n", most,
                      kMost);
          failed = true;
        }
      }
      std::printf("\n");
    }
  };
  print(benign_rows());
  print(adversarial_rows());
  std::printf("%s\n", failed ? "loss read tests: FAILED" : "loss read tests: all passed");
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
