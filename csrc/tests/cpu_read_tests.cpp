// How often the CPU sampler reads a row: counted, printed by kind of row and filter, and bounded.
// With an argument, the table is in Markdown (docs/architecture.md).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "row.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// A logit whose loads are counted.
struct Counted {
  float value;
};

// Elements read, each at most once per visit of its block: the second read of a block in the
// first-level cache costs no memory traffic.
struct Reads {
  uintptr_t block = 0;
  int64_t in_visit = 0;
  int64_t elements = 0;

  void load(const Counted* source) {
    const uintptr_t loaded = reinterpret_cast<uintptr_t>(source) / (kBlock * sizeof(Counted));
    if (loaded != block) end_visit();
    block = loaded;
    in_visit += kLanes;
  }
  void end_visit() {
    elements += std::min<int64_t>(in_visit, kBlock);
    in_visit = 0;
  }
} reads;

float to_float(Counted element) { return element.value; }

template <>
Counted minus_infinity<Counted>() {
  return {-kInfinity};
}

Floats load(const Counted* source) {
  reads.load(source);
  return load(&source->value);
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA

#include "sample_impl.h"

namespace {

using namespace autodeco;
using namespace autodeco::cpu::AUTODECO_ISA;

constexpr int kVocab = 151936;
using Logits = std::vector<float>;
std::mt19937_64 random_bits(5);

float normal() { return std::normal_distribution<float>()(random_bits); }
float uniform() { return std::uniform_real_distribution<float>()(random_bits); }

// The columns that Sample::take looks at.
bool is_sampled(int column) { return column % kBlock / 16 == column / kBlock * 7 % (kBlock / 16); }

Logits make(const std::function<float(int)>& logit) {
  Logits row(kVocab);
  for (int column = 0; column < kVocab; ++column) row[column] = logit(column);
  return row;
}

Logits sorted(Logits row, bool ascending) {
  std::sort(row.begin(), row.end());
  if (!ascending) std::reverse(row.begin(), row.end());
  return row;
}

struct Kind {
  const char* name;
  Logits row;
};

std::vector<Kind> benign_rows() {
  return {
      {"peaked", make([](int) { return 10 - 1.5f * std::log(1 + kVocab * uniform()); })},
      {"gaussian, sigma 1", make([](int) { return normal(); })},
      {"gaussian, sigma 5", make([](int) { return 5 * normal(); })},
      {"uniform logits", make([](int) { return uniform(); })},
      {"all equal", make([](int) { return 1.0f; })},
      {"rounded to 1/8", make([](int) { return std::round(24 * normal()) / 8; })},
      {"ascending", sorted(make([](int) { return 3 * normal(); }), true)},
      {"descending", sorted(make([](int) { return 3 * normal(); }), false)},
  };
}

std::vector<Kind> adversarial_rows() {
  Logits period(kBlock);
  for (float& logit : period) logit = normal();
  return {
      {"mass in one block",
       make([](int column) { return column / kBlock == 77 ? normal() : -30 + normal(); })},
      {"period 512", make([&](int column) { return period[column % kBlock]; })},
      {"period 16", make([&](int column) { return period[column % 16]; })},
      {"mass not sampled", make([](int column) { return is_sampled(column) ? -9.0f : normal(); })},
      {"only mass sampled", make([](int column) { return is_sampled(column) ? normal() : -9.0f; })},
      {"sample sees none", make([](int column) { return is_sampled(column) ? -1e30f : normal(); })},
      {"sample sees none, one float apart", make([](int column) {
         if (column == 0) return 4.0f;
         return is_sampled(column) ? -1e30f : 1 + std::floor(uniform() * 40) * 0x1p-23f;
       })},
      {"sample spread, rest close", make([](int column) {
         return is_sampled(column) ? -8 * uniform() : -3 - 1e-4f * uniform();
       })},
      {"sample spread, rest tied",
       make([](int column) { return is_sampled(column) ? -8 * uniform() : -3.0f; })},
      {"one float apart", make([](int) { return 1 + std::floor(uniform() * 4096) * 0x1p-23f; })},
      {"powers of two apart",
       make([](int) { return 1 + std::exp2(-1 - std::floor(uniform() * 23)); })},
      {"whole range", make([](int) { return 3e38f * (2 * uniform() - 1); })},
      {"half excluded", make([](int) { return uniform() < 0.5f ? -kInfinity : normal(); })},
      {"k-th block maximum poor",
       make([](int column) { return column < 8 * kBlock ? 20 + normal() : 1e-3f * normal(); })},
  };
}

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
double count_reads(const Logits& logits, const FilterParameters& parameters) {
  static const auto data = std::make_unique<Counted[]>(kVocab + 2 * kBlock);
  const uintptr_t address = reinterpret_cast<uintptr_t>(data.get());
  constexpr uintptr_t kBlockBytes = kBlock * sizeof(Counted);
  Counted* row = data.get() + (kBlockBytes - address % kBlockBytes) / sizeof(Counted);
  for (int column = 0; column < kVocab; ++column) row[column] = {logits[column]};
  int64_t token = -1;
  RowStatus status = RowStatus::kNoFiniteLogit;
  SampleArguments arguments;
  arguments.filters = parameters;
  arguments.tokens = &token;
  arguments.status = &status;
  reads = {};
  static_cast<void>(&sample_rows);  // otherwise unused here
  sample_row(arguments, 0, Row<Counted>(row, kVocab));
  reads.end_visit();
  if (status != RowStatus::kValid || token < 0 || token >= kVocab) {
    std::printf("FAILED: a row is invalid\n");
    std::exit(EXIT_FAILURE);
  }
  return static_cast<double>(reads.elements) / kVocab;
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
          const double found = count_reads(kind.row, parameters);
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
