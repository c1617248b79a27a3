// How often the CPU kernels read a row: counted, printed by kind of row, and bounded. With an
// argument, the tables are in Markdown (docs/architecture.md).
#include "counted_rows.h"

// After what it counts.
#include "distribution_stats_impl.h"
#include "filter_logits_impl.h"
#include "misleading_rows.h"
#include "sample_impl.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using namespace autodeco::cpu::AUTODECO_ISA;

using CountReads = std::function<double(const Logits&)>;

// Calls of one kind, which differ in their parameters.
struct Column {
  const char* name;
  std::vector<CountReads> calls;
  double most;  // reads of any row
};

void expect_valid(RowStatus status) {
  if (status == RowStatus::kValid) return;
  std::printf("FAILED: a row is invalid\n");
  std::exit(EXIT_FAILURE);
}

FilterParameters filters(float temperature, float top_p, int64_t top_k, float min_p) {
  FilterParameters parameters;
  parameters.temperature.value = temperature;
  parameters.top_p.value = top_p;
  parameters.top_k.value = top_k;
  parameters.min_p.value = min_p;
  parameters.valid_vocab.value = kVocab;
  return parameters;
}

double reads_of_draw(const FilterParameters& parameters, const Logits& logits) {
  int64_t token = -1;
  RowStatus status = RowStatus::kNoFiniteLogit;
  SampleArguments arguments;
  arguments.filters = parameters;
  arguments.tokens = &token;
  arguments.status = &status;
  static_cast<void>(&sample_rows);  // otherwise unused here
  const double found =
      count_reads(logits, [&](const Row<Counted>& row) { sample_row(arguments, 0, row); });
  expect_valid(status);
  if (token < 0 || token >= kVocab) {
    std::printf("FAILED: no such token\n");
    std::exit(EXIT_FAILURE);
  }
  return found;
}

double reads_of_filter(const FilterParameters& parameters, const Logits& logits) {
  Logits output(kVocab);
  RowStatus status = RowStatus::kNoFiniteLogit;
  FilterLogitsArguments arguments;
  arguments.filters = parameters;
  arguments.filter_value = -kInfinity;
  arguments.layout.vocab = kVocab;
  arguments.output = output.data();
  arguments.status = &status;
  static_cast<void>(&filter_logits_rows);
  const double found =
      count_reads(logits, [&](const Row<Counted>& row) { filter_row(arguments, 0, row); });
  expect_valid(status);
  return found;
}

double reads_of_stats(float temperature, const Logits& logits) {
  float stats[kNumStats];
  RowStatus status = RowStatus::kNoFiniteLogit;
  static_cast<void>(&distribution_stats_rows);
  const double found = count_reads(
      logits, [&](const Row<Counted>& row) { status = stats_of_row(row, temperature, stats); });
  expect_valid(status);
  return found;
}

std::vector<FilterParameters> top_p_to_99() {
  std::vector<FilterParameters> parameters;
  for (const float p : {0.1f, 0.5f, 0.9f, 0.95f, 0.99f}) {
    for (const float t : {0.3f, 1.0f, 2.0f}) parameters.push_back(filters(t, p, 0, 0));
  }
  return parameters;
}

std::vector<FilterParameters> every_filter() {
  std::vector<FilterParameters> parameters;
  for (const int k : {2, 50, 297, 298, 1000, 5000, 11777, 50000, 100000, 151935}) {
    for (const float p : {0.5f, 0.95f, 0.99999f, 1 - 0x1p-24f}) {
      for (const float m : {1e-3f, 0.1f}) parameters.push_back(filters(1, p, k, m));
    }
  }
  return parameters;
}

Column draws(const char* name, const std::vector<FilterParameters>& every_parameters, double most) {
  Column column = {name, {}, most};
  for (const FilterParameters& parameters : every_parameters) {
    column.calls.push_back([=](const Logits& logits) { return reads_of_draw(parameters, logits); });
  }
  return column;
}

// The summary, three attempts, three histograms and what they leave; three samples of 1/32, two
// attempts that stop after an eighth, and two blocks.
constexpr double kMost = 8.36;

std::vector<Column> columns_of_sample() {
  std::vector<FilterParameters> top_p_near_one, top_k, both, min_p;
  for (const float p : {0.9999f, 0.999999f, 1 - 0x1p-24f}) {
    for (const float t : {0.3f, 1.0f, 2.0f}) top_p_near_one.push_back(filters(t, p, 0, 0));
  }
  for (const int k : {2, 50, 297, 298, 1000, 5000, 11777, 50000, 100000, 151935}) {
    top_k.push_back(filters(1, 1, k, 0));
    for (const float p : {0.5f, 0.95f, 0.99999f, 1 - 0x1p-24f}) {
      both.push_back(filters(1, p, k, 0));
    }
  }
  for (const float m : {1e-30f, 1e-3f, 0.05f, 0.5f, 1.0f}) min_p.push_back(filters(1, 1, 0, m));
  return {draws("greedy", {filters(0, 0.9f, 0, 0)}, 1.01),
          draws("none", {filters(1, 1, 0, 0)}, 1.02),
          draws("top_p to 0.99", top_p_to_99(), kMost),
          draws("top_p above", top_p_near_one, kMost),
          draws("top_k", top_k, kMost),
          draws("top_k and top_p", both, kMost),
          draws("min_p", min_p, 3.02),
          draws("top_k, top_p and min_p", every_filter(), kMost)};
}

std::vector<Column> columns_of_other_ops() {
  Column top_p = {"filter_logits, top_p to 0.99", {}, 9.36};
  for (const FilterParameters& parameters : top_p_to_99()) {
    top_p.calls.push_back(
        [=](const Logits& logits) { return reads_of_filter(parameters, logits); });
  }
  Column every = {"filter_logits, top_k, top_p and min_p", {}, 9.36};
  for (const FilterParameters& parameters : every_filter()) {
    every.calls.push_back(
        [=](const Logits& logits) { return reads_of_filter(parameters, logits); });
  }
  Column stats = {"distribution_stats", {}, 2.07};
  for (const float t : {0.3f, 1.0f, 2.0f, 100.0f}) {
    stats.calls.push_back([=](const Logits& logits) { return reads_of_stats(t, logits); });
  }
  return {top_p, every, stats};
}

// Whether no row is read more often than its column allows.
bool print_table(const std::vector<Column>& columns, const std::vector<Kind>& kinds,
                 bool markdown) {
  bool passed = true;
  std::printf("| row |");
  for (const Column& column : columns) std::printf(" %s |", column.name);
  std::printf("\n|---|");
  for (size_t i = 0; markdown && i < columns.size(); ++i) std::printf("---|");
  std::printf("\n");
  for (const Kind& kind : kinds) {
    std::printf(markdown ? "| %s |" : "%-34s", kind.name);
    for (const Column& column : columns) {
      double least = 1e9;
      double most = 0;
      for (const CountReads& call : column.calls) {
        const double found = call(kind.row);
        least = std::min(least, found);
        most = std::max(most, found);
      }
      std::printf(markdown ? " %.1f–%.1f |" : "  %4.1f ..%5.1f", least, most);
      if (most > column.most) {
        std::printf("\nFAILED: %s reads a row %.2f times, at most %.2f are allowed\n", column.name,
                    most, column.most);
        passed = false;
      }
    }
    std::printf("\n");
  }
  return passed;
}

// Whether rows like their sample are mostly read twice: the first guess holds the end of the
// nucleus, also where that lies among more equal tokens than can be listed, where next to nothing
// follows it, or where an unknown number of tokens is excluded; and no read before it lists tokens
// near the maximum in vain, of which hot rows have too many.
bool first_guesses_hold() {
  constexpr int kRows = 32;
  constexpr double kMostInTheMean = 2.3;
  struct Case {
    const char* name;
    FilterParameters parameters;
    std::function<float(int)> logit;
  };
  const auto excluded = [](int) { return uniform() < 0.7f ? -kInfinity : normal(); };
  const auto peaked = [](int) { return 12 - 1.8f * std::log(1 + kVocab * uniform()); };
  const std::vector<Case> cases = {
      {"Gaussian", filters(1.5395f, 0.3514f, 0, 0), [](int) { return normal(); }},
      {"rounded to integers", filters(1.5395f, 0.3514f, 0, 0),
       [](int) { return std::round(2 * normal()); }},
      {"Gaussian, P = 0.99999", filters(1, 0.99999f, 0, 0), [](int) { return normal(); }},
      {"powers of two apart, k = 100,000", filters(1, 1, 100000, 0),
       [](int) { return 1 + std::exp2(-1 - std::floor(uniform() * 23)); }},
      {"0.7 excluded, k = 20,000", filters(1, 1, 20000, 0), excluded},
      {"peaked, T = 1.9, P = 0.9", filters(1.9f, 0.9f, 0, 0), peaked},
      {"peaked, T = 1.5, P = 0.99", filters(1.5f, 0.99f, 0, 0), peaked},
  };
  bool passed = true;
  std::printf("\nmean reads, at most %.2f\n", kMostInTheMean);
  for (const Case& each : cases) {
    double mean = 0;
    for (int i = 0; i < kRows; ++i) {
      mean += reads_of_draw(each.parameters, make(each.logit)) / kRows;
    }
    std::printf("%s%s: %.2f\n", mean <= kMostInTheMean ? "" : "FAILED: ", each.name, mean);
    passed &= mean <= kMostInTheMean;
  }
  return passed;
}

// Whether the first read counts where it is of one key, and so lists nothing: every block has the
// maximum, and every guess is wrong.
bool reads_of_one_key_count() {
  double most = 0;
  for (Kind kind : misleading_rows()) {
    for (int column = 0; column < kVocab; column += kBlock) kind.row[column] = 4.0f;
    for (const FilterParameters& parameters :
         {filters(100, 0.3f, 0, 0), filters(100, 0.7f, 151935, 0), filters(4, 0.95f, 0, 0),
          filters(4, 0.9f, 151935, 0)}) {
      most = std::max(most, reads_of_draw(parameters, kind.row));
    }
  }
  std::printf("maximum in every block: %.2f reads, at most %.2f\n", most, kMost);
  return most <= kMost;
}

// Whether guesses are keys of logits, the low end below the high one, wherever rounding puts the
// lowest logit of the bounds: an attempt with another guess finds nothing.
bool guesses_are_intervals() {
  const auto search = std::make_unique<Search>();
  const Scaling scaling(1.0f);
  for (int i = 0; i < 200; ++i) {
    const float sigma = 0.2f + 3.0f * uniform();
    const Logits logits = make([=](int) { return sigma * normal(); });
    const Row<float> row(logits.data(), kVocab);
    summarize(row, &scaling, search->summary);
    const float max = search->summary.max;
    const uint64_t mass = search->summary.mass;
    const double share = 0.025 / kVocab * static_cast<double>(mass) / kMassScale;
    const float lowest = max + static_cast<float>(std::log(share));
    const Bounds bounds = {
        {order_key(lowest), order_key(max)}, {}, {kVocab, mass}, kLowestFiniteKey, true};
    search->sample.take(row, scaling, bounds, max, Sample::shift_of(search->summary, i % 3));
    for (const double p : {0.5, 0.9, 0.95, 0.99, 0.999, 0.9999}) {
      for (const double deviations : {1.5, 2.0, 5.0}) {
        const uint64_t target = static_cast<uint64_t>(p * static_cast<double>(mass));
        const Interval guess = search->sample.guess(bounds, Measure::kMass, target, deviations);
        if (guess.low <= guess.high && guess.low >= bounds.keys.low) continue;
        std::printf("FAILED: guess %08x .. %08x\n", guess.low, guess.high);
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int main(int count, char**) {
  const bool markdown = count > 1;
  std::vector<Kind> kinds = benign_rows();
  for (const Kind& kind : adversarial_rows()) kinds.push_back(kind);
  for (const Kind& kind : misleading_rows()) kinds.push_back(kind);
  bool passed = print_table(columns_of_sample(), kinds, markdown);
  std::printf("\n");
  passed &= print_table(columns_of_other_ops(), kinds, markdown);
  passed &= first_guesses_hold();
  passed &= reads_of_one_key_count();
  passed &= guesses_are_intervals();
  std::printf("%s\n", passed ? "read tests: all passed" : "read tests: FAILED");
  return passed ? EXIT_SUCCESS : EXIT_FAILURE;
}
