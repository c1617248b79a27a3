// How long the CPU sampler takes on the rows of cpu_read_tests, in units of the floor: one read for
// the maximum and the sum of exponentials. Prints Markdown: the mean over the parameters, the most
// and its reads. No test, because a machine that does other work scatters.
#include <chrono>
#include <string>

#include "counted_rows.h"

// After what it counts.
#include "floor_impl.h"
#include "misleading_rows.h"
#include "native_isa.h"
#include "sample_impl.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using namespace autodeco::cpu::AUTODECO_ISA;

struct Call {
  float temperature;
  float top_p;
  int64_t top_k;
};

struct Column {
  const char* name;
  std::vector<Call> calls;
};

std::vector<Column> columns() {
  Column to_99 = {"top_p to 0.99", {}};
  Column above = {"top_p above", {}};
  Column top_k = {"top_k", {}};
  Column both = {"top_k and top_p", {}};
  for (const float t : {0.3f, 1.0f, 2.0f}) {
    for (const float p : {0.1f, 0.5f, 0.9f, 0.95f, 0.99f}) to_99.calls.push_back({t, p, 0});
    for (const float p : {0.9999f, 0.99999f, 0.999999f, 1 - 0x1p-24f}) {
      above.calls.push_back({t, p, 0});
    }
  }
  for (const int k : {2, 50, 297, 298, 1000, 5000, 11777, 50000, 100000, 151935}) {
    top_k.calls.push_back({1, 1, k});
    for (const float p : {0.5f, 0.95f, 0.99999f, 1 - 0x1p-24f}) both.calls.push_back({1, p, k});
  }
  return {to_99, above, top_k, both};
}

constexpr int kCopies = 72;  // 44 MB: more than the last-level cache
Logits copies(static_cast<size_t>(kCopies) * kVocab);

Row<float> next_copy() {
  static size_t next = 0;
  next = (next + 7) % kCopies;
  return Row<float>(copies.data() + next * kVocab, kVocab);
}

template <typename Function>
double seconds(Function&& function) {
  const auto begin = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

struct Timed {
  double reads;
  double time;
};

Timed time_call(const Call& call, const Logits& logits, std::vector<double>& floors) {
  constexpr int kRepeats = 7;
  int64_t token = -1;
  RowStatus status = RowStatus::kNoFiniteLogit;
  SampleArguments arguments;
  arguments.filters.temperature.value = call.temperature;
  arguments.filters.top_p.value = call.top_p;
  arguments.filters.top_k.value = call.top_k;
  arguments.filters.valid_vocab.value = kVocab;
  arguments.tokens = &token;
  arguments.status = &status;
  const double reads =
      count_reads(logits, [&](const Row<Counted>& row) { sample_row(arguments, 0, row); });
  std::vector<double> times;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const Row<float> row = next_copy();
    times.push_back(seconds([&] { sample_row(arguments, 0, row); }));
    const Row<float> other = next_copy();
    float output[2];
    floors.push_back(seconds([&] { floor_row(other, output); }));
  }
  return {reads, median(times)};
}

}  // namespace

int main() {
  if (!processor_has_isa()) return kSkipped;
  static_cast<void>(&sample_rows);  // otherwise unused here
  static_cast<void>(&floor_rows);
  std::vector<Kind> kinds = benign_rows();
  for (const Kind& kind : adversarial_rows()) kinds.push_back(kind);
  for (const Kind& kind : misleading_rows()) kinds.push_back(kind);
  std::printf("| row |");
  for (const Column& column : columns()) std::printf(" %s |", column.name);
  std::printf("\n|---|---|---|---|---|\n");
  for (const Kind& kind : kinds) {
    for (size_t copy = 0; copy < kCopies; ++copy) {
      std::copy(kind.row.begin(), kind.row.end(),
                copies.begin() + static_cast<ptrdiff_t>(copy * kVocab));
    }
    std::vector<double> floors;
    std::vector<std::vector<Timed>> timed;
    for (const Column& column : columns()) {
      timed.emplace_back();
      for (const Call& call : column.calls) {
        timed.back().push_back(time_call(call, kind.row, floors));
      }
    }
    const double floor = median(floors);
    std::printf("| %s |", kind.name);
    for (const std::vector<Timed>& column : timed) {
      Timed most = {0, 0};
      double mean = 0;
      for (const Timed& each : column) {
        mean += each.time / static_cast<double>(column.size());
        if (each.time > most.time) most = each;
      }
      std::printf(" %.1f, %.1f (%.1f) |", mean / floor, most.time / floor, most.reads);
    }
    std::printf("\n");
  }
}
