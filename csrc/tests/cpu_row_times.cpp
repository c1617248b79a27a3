// How long the CPU sampler takes on the rows of cpu_read_tests, against the floor: one read for the
// maximum and the sum of exponentials. No test: a machine that does other work scatters.
//   cpu_row_times [CALLS]   with CALLS > 0, the slowest calls of each kind too
#include <chrono>

#include "counted_rows.h"

// After what it counts.
#include "floor_impl.h"
#include "sample_impl.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using namespace autodeco::cpu::AUTODECO_ISA;

struct Call {
  const char* column;
  float temperature, top_p, min_p;
  int64_t top_k;
};

std::vector<Call> calls() {
  std::vector<Call> all;
  for (const float t : {0.3f, 1.0f, 2.0f}) {
    for (const float p : {0.1f, 0.5f, 0.9f, 0.95f, 0.99f})
      all.push_back({"top_p to 0.99", t, p, 0, 0});
    for (const float p : {0.9999f, 0.99999f, 0.999999f, 1 - 0x1p-24f})
      all.push_back({"top_p above", t, p, 0, 0});
  }
  for (const int64_t k : {2, 50, 297, 298, 1000, 5000, 11777, 50000, 100000, 151935}) {
    all.push_back({"top_k", 1, 1, 0, k});
    for (const float p : {0.5f, 0.95f, 0.99999f, 1 - 0x1p-24f})
      all.push_back({"top_k and top_p", 1, p, 0, k});
  }
  return all;
}

constexpr int kCopies = 72;  // 44 MB: more than the last-level cache
Logits copies(static_cast<size_t>(kCopies) * kVocab);

template <typename Function>
double seconds(Function&& function) {
  const auto begin = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

int next = 0;
Row<float> next_row() {
  next = (next + 7) % kCopies;
  return Row<float>(copies.data() + static_cast<size_t>(next) * kVocab, kVocab);
}

struct Result {
  Call call;
  double reads;
  double ratio;
};

}  // namespace

int main(int count, char** arguments) {
  const int shown = count > 1 ? std::atoi(arguments[1]) : 0;
  static_cast<void>(&sample_rows);
  static_cast<void>(&floor_rows);
  std::vector<Kind> kinds = benign_rows();
  for (const Kind& kind : adversarial_rows()) kinds.push_back(kind);
  kinds.push_back(
      {"0.9 excluded", make([](int) { return uniform() < 0.9f ? -kInfinity : normal(); })});
  kinds.push_back({"heavy tail", make([](int) { return 3 * std::log(1 / (1e-7f + uniform())); })});
  const std::vector<Call> all = calls();
  std::printf("%-34s %8s", "row", "floor us");
  for (const char* c : {"top_p to 0.99", "top_p above", "top_k", "top_k and top_p"})
    std::printf("  %22s", c);
  std::printf("\n");
  for (const Kind& kind : kinds) {
    for (int copy = 0; copy < kCopies; ++copy) {
      std::copy(kind.row.begin(), kind.row.end(),
                copies.begin() + static_cast<size_t>(copy) * kVocab);
    }
    std::vector<double> floors;
    std::vector<Result> results;
    for (const Call& call : all) {
      int64_t token = -1;
      RowStatus status = RowStatus::kNoFiniteLogit;
      SampleArguments a;
      a.filters.temperature.value = call.temperature;
      a.filters.top_p.value = call.top_p;
      a.filters.top_k.value = call.top_k;
      a.filters.min_p.value = call.min_p;
      a.filters.valid_vocab.value = kVocab;
      a.tokens = &token;
      a.status = &status;
      const double reads =
          count_reads(kind.row, [&](const Row<Counted>& row) { sample_row(a, 0, row); });
      std::vector<double> times;
      for (int repeat = 0; repeat < 5; ++repeat) {
        const Row<float> row = next_row();
        times.push_back(seconds([&] { sample_row(a, 0, row); }));
        const Row<float> other = next_row();
        float output[2];
        floors.push_back(seconds([&] { floor_row(other, output); }));
      }
      results.push_back({call, reads, median(times)});
    }
    const double floor = median(floors);
    for (Result& result : results) result.ratio /= floor;
    std::printf("%-34s %8.1f", kind.name, floor * 1e6);
    for (const char* c : {"top_p to 0.99", "top_p above", "top_k", "top_k and top_p"}) {
      double mean = 0, most = 0, most_reads = 0;
      int n = 0;
      for (const Result& r : results) {
        if (r.call.column != std::string(c)) continue;
        mean += r.ratio;
        ++n;
        most = std::max(most, r.ratio);
        most_reads = std::max(most_reads, r.reads);
      }
      std::printf("  %4.1f mean %4.1f (%3.1f rd)", mean / n, most, most_reads);
    }
    std::printf("\n");
    std::sort(results.begin(), results.end(),
              [](const Result& a, const Result& b) { return a.ratio > b.ratio; });
    for (int i = 0; i < shown; ++i) {
      const Result& r = results[i];
      std::printf("      %5.1f x  %3.1f reads  T %.1f P %.8f k %lld\n", r.ratio, r.reads,
                  r.call.temperature, r.call.top_p, (long long)r.call.top_k);
    }
  }
}
