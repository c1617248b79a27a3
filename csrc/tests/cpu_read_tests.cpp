// How often the CPU sampler reads a row: counted, printed by kind of row and filter, and bounded.
// With an argument, the table is in Markdown (docs/architecture.md).
#include "counted_rows.h"

// After what it counts.
#include "sample_impl.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using namespace autodeco::cpu::AUTODECO_ISA;

struct Filter {
  const char* name;
  std::vector<FilterParameters> parameters;
  double most;  // reads of any row
};

FilterParameters filters(float temperature, float top_p, int64_t top_k, float min_p) {
  FilterParameters parameters;
  parameters.temperature.value = temperature;
  parameters.top_p.value = top_p;
  parameters.top_k.value = top_k;
  parameters.min_p.value = min_p;
  parameters.valid_vocab.value = kVocab;
  return parameters;
}

std::vector<Filter> all_filters() {
  Filter top_p = {"top_p to 0.99", {}, 10.2};
  Filter top_p_near_one = {"top_p above", {}, 10.2};
  Filter top_k = {"top_k", {}, 10.2};
  Filter both = {"top_k and top_p", {}, 19.5};
  Filter min_p = {"min_p", {}, 4.1};
  Filter every = {"top_k, top_p and min_p", {}, 22.6};
  for (const float p : {0.1f, 0.5f, 0.9f, 0.95f, 0.99f, 0.9999f, 0.999999f, 1 - 0x1p-24f}) {
    Filter& filter = p <= 0.99f ? top_p : top_p_near_one;
    for (const float t : {0.3f, 1.0f, 2.0f}) filter.parameters.push_back(filters(t, p, 0, 0));
  }
  for (const int k : {2, 50, 297, 298, 1000, 5000, 11777, 50000, 100000, 151935}) {
    top_k.parameters.push_back(filters(1, 1, k, 0));
    for (const float p : {0.5f, 0.95f, 0.99999f, 1 - 0x1p-24f}) {
      both.parameters.push_back(filters(1, p, k, 0));
      for (const float m : {1e-3f, 0.1f}) every.parameters.push_back(filters(1, p, k, m));
    }
  }
  for (const float m : {1e-30f, 1e-3f, 0.05f, 0.5f, 1.0f}) {
    min_p.parameters.push_back(filters(1, 1, 0, m));
  }
  return {{"greedy", {filters(0, 0.9f, 0, 0)}, 1.01},
          {"none", {filters(1, 1, 0, 0)}, 1.02},
          top_p,
          top_p_near_one,
          top_k,
          both,
          min_p,
          every};
}

// Reads of one draw.
double reads_of_draw(const Logits& logits, const FilterParameters& parameters) {
  int64_t token = -1;
  RowStatus status = RowStatus::kNoFiniteLogit;
  SampleArguments arguments;
  arguments.filters = parameters;
  arguments.tokens = &token;
  arguments.status = &status;
  static_cast<void>(&sample_rows);  // otherwise unused here
  const double found =
      count_reads(logits, [&](const Row<Counted>& row) { sample_row(arguments, 0, row); });
  if (status != RowStatus::kValid || token < 0 || token >= kVocab) {
    std::printf("FAILED: a row is invalid\n");
    std::exit(EXIT_FAILURE);
  }
  return found;
}

}  // namespace

int main(int count, char**) {
  const bool markdown = count > 1;
  bool failed = false;
  const std::vector<Filter> every_filter = all_filters();
  if (markdown) {
    std::printf("| row |");
    for (const Filter& filter : every_filter) std::printf(" %s |", filter.name);
    std::printf("\n|---|");
    for (size_t i = 0; i < every_filter.size(); ++i) std::printf("---|");
    std::printf("\n");
  }
  const auto print = [&](const std::vector<Kind>& kinds) {
    for (const Kind& kind : kinds) {
      std::printf(markdown ? "| %s |" : "%-34s", kind.name);
      for (const Filter& filter : every_filter) {
        double least = 1e9;
        double most = 0;
        for (const FilterParameters& parameters : filter.parameters) {
          const double found = reads_of_draw(kind.row, parameters);
          least = std::min(least, found);
          most = std::max(most, found);
        }
        std::printf(markdown ? " %.1f–%.1f |" : "  %4.1f ..%5.1f", least, most);
        if (most > filter.most) {
          std::printf("\nFAILED: %s reads a row %.2f times, at most %.2f are allowed\n",
                      filter.name, most, filter.most);
          failed = true;
        }
      }
      std::printf("\n");
    }
  };
  print(benign_rows());
  print(adversarial_rows());
  std::printf("%s\n", failed ? "read tests: FAILED" : "read tests: all passed");
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
