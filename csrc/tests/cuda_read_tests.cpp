// Bytes of logits that the kernels load, over the bytes of the row: the tables of docs/kernels.md.
// The largest of two thread orders, with 1 and 8 blocks a row, in a cluster and without. Beyond the
// bounds below, a segment of 1024 columns is read once more for each draw, and one more where the
// last kept token is tied with one that is not.
#include <cstdlib>

#include "emulated_kept.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;
using emulation::Order;

constexpr int kVocab = 151936;
constexpr double kSegmentReads = double{cuda::kSegment} / kVocab;
// What a draw and a tie read where 32-bit keys are counted per unit of segments.
constexpr double kUnitReads =
    kSegmentReads * (1 << cuda::last_digit_of<float>(cuda::units_of(kVocab, 10)).unit_shift);
// The draw, a tie, and one that turns float sums into exact ones.
constexpr double kSegments = 3.0 * kSegmentReads;
// The draw and a tie.
constexpr double kUnits = 2.0 * kUnitReads;
static_assert(cuda::kSegment == 1 << 10 && kUnits > kSegments && kUnits < 0.06);

struct Case {
  const char* name;
  RowKind kind;
  Filters filters;
  double reads_16_bit;
  double reads_32_bit;
};

const Case kCases[] = {
    {"peaked, T = 0", RowKind::kPeaked, {0.0f, 0.9f, 0, 0.0f}, 1, 1},
    {"peaked, top_k = 1", RowKind::kPeaked, {1.0f, 0.9f, 1, 0.0f}, 1, 1},
    {"uniform, top_k = 1", RowKind::kUniform, {1.0f, 0.9f, 1, 0.0f}, 1, 1},
    {"peaked, no filter", RowKind::kPeaked, {1.0f, 1.0f, 0, 0.0f}, 1, 1},
    {"all equal, no filter", RowKind::kAllEqual, {1.0f, 1.0f, 0, 0.0f}, 1, 1},
    {"confident, P = 0.9", RowKind::kConfident, {1.0f, 0.9f, 0, 0.0f}, 1.02, 1.02},
    {"confident, P = 0.99", RowKind::kConfident, {1.0f, 0.99f, 0, 0.0f}, 1.02, 1.02},
    {"confident, top_k = 50", RowKind::kConfident, {1.0f, 1.0f, 50, 0.0f}, 1.15, 1.15},
    {"confident, top_k = 20, P = 0.95", RowKind::kConfident, {0.6f, 0.95f, 20, 0.0f}, 1.15, 1.15},
    {"ten neighbours, P = 0.9", RowKind::kNeighbours, {1.0f, 0.9f, 0, 0.0f}, 1.02, 1.02},
    {"ten neighbours, top_k = 50", RowKind::kNeighbours, {1.0f, 1.0f, 50, 0.0f}, 1.15, 1.15},
    {"300 peaks, P = 0.9", RowKind::kPeaked, {0.6f, 0.9f, 0, 0.0f}, 1.1, 1.1},
    {"300 peaks, P = 0.99", RowKind::kPeaked, {0.6f, 0.99f, 0, 0.0f}, 1.3, 1.3},
    {"300 peaks, top_k = 50", RowKind::kPeaked, {0.6f, 1.0f, 50, 0.0f}, 1.15, 1.15},
    {"300 peaks, top_k = 50, P = 0.9", RowKind::kPeaked, {0.6f, 0.9f, 50, 0.0f}, 1.15, 1.15},
    {"300 peaks, min_p = 0.05", RowKind::kPeaked, {0.6f, 1.0f, 0, 0.05f}, 1.05, 1.05},
    {"ascending, P = 0.9", RowKind::kAscending, {0.2f, 0.9f, 0, 0.0f}, 3, 4},
    {"Gaussian, T = 2, P = 0.95", RowKind::kGaussian, {2.0f, 0.95f, 0, 0.0f}, 3, 4},
    {"uniform, P = 0.5", RowKind::kUniform, {1.0f, 0.5f, 0, 0.0f}, 3, 4},
    {"uniform, P = 0.999999", RowKind::kUniform, {1.0f, 0.999999f, 0, 0.0f}, 3, 4},
    {"all equal, P = 0.9", RowKind::kAllEqual, {1.0f, 0.9f, 0, 0.0f}, 3, 4},
    {"two values, P = 0.9", RowKind::kTwoValues, {1.0f, 0.9f, 0, 0.0f}, 3, 4},
    {"float neighbours, P = 0.5", RowKind::kClose, {1e-4f, 0.5f, 0, 0.0f}, 3, 4},
    {"Gaussian, T = 1e30, P = 0.9", RowKind::kGaussian, {1e30f, 0.9f, 0, 0.0f}, 3, 4},
    {"Gaussian, min_p = 1e-9", RowKind::kGaussian, {1.0f, 1.0f, 0, 1e-9f}, 2, 2},
    {"uniform, top_k = 50", RowKind::kUniform, {1.0f, 1.0f, 50, 0.0f}, 3, 4},
    {"uniform, top_k = 50, P = 0.9", RowKind::kUniform, {1.0f, 0.9f, 50, 0.0f}, 3, 4},
    {"all equal, top_k = 50, P = 0.9", RowKind::kAllEqual, {1.0f, 0.9f, 50, 0.0f}, 3, 4},
    {"uniform, top_k = 3072, P = 0.9", RowKind::kUniform, {1.0f, 0.9f, 3072, 0.0f}, 3, 4},
    {"Gaussian, top_k = 3072, P = 0.5", RowKind::kGaussian, {1.0f, 0.5f, 3072, 0.0f}, 3, 4},
    {"all equal, top_k = 3072, P = 0.9", RowKind::kAllEqual, {1.0f, 0.9f, 3072, 0.0f}, 3, 4},
    {"two values, top_k = 3072, P = 0.9", RowKind::kTwoValues, {1.0f, 0.9f, 3072, 0.0f}, 3, 4},
    {"float neighbours, k = 3072, P = 0.9", RowKind::kClose, {1e-4f, 0.9f, 3072, 0.0f}, 3, 4},
    {"half, P = 0.9", RowKind::kHalf, {1.0f, 0.9f, 0, 0.0f}, 3, 4},
    {"half, top_k = 500, P = 0.9", RowKind::kHalf, {1.0f, 0.9f, 500, 0.0f}, 3, 4},
    {"Gaussian, top_k = 100000", RowKind::kGaussian, {1.0f, 1.0f, 100000, 0.0f}, 3, 4},
    // More tokens than the list holds, and a share of them. For the draw a unit of segments is
    // read.
    {"uniform, top_k = 3073, P = 0.9", RowKind::kUniform, {1.0f, 0.9f, 3073, 0.0f}, 3, 5},
    {"uniform, top_k = 5000, P = 0.9", RowKind::kUniform, {1.0f, 0.9f, 5000, 0.0f}, 3, 5},
    {"uniform, top_k = 100000, P = 0.9", RowKind::kUniform, {1.0f, 0.9f, 100000, 0.0f}, 3, 5},
    {"uniform, k = 100000, P = 0.999999", RowKind::kUniform, {1.0f, 0.999999f, 100000, 0.0f}, 3, 5},
    {"Gaussian, T = 1e30, k = 100000, P = 0.5",
     RowKind::kGaussian,
     {1e30f, 0.5f, 100000, 0.0f},
     3,
     5},
    {"Gaussian, k = 5000, P = 0.9, min_p", RowKind::kGaussian, {2.0f, 0.9f, 5000, 0.5f}, 3, 5},
    {"all equal, k = 100000, P = 0.9", RowKind::kAllEqual, {1.0f, 0.9f, 100000, 0.0f}, 3, 5},
    {"two values, k = 100000, P = 0.9", RowKind::kTwoValues, {1.0f, 0.9f, 100000, 0.0f}, 3, 5},
    {"float neighbours, k = 100000", RowKind::kClose, {1e-4f, 0.9f, 100000, 0.0f}, 3, 5},
    {"half, k = 100000, P = 0.9", RowKind::kHalf, {1.0f, 0.9f, 100000, 0.0f}, 3, 5},
    {"300 peaks, k = 5000, P = 0.9", RowKind::kPeaked, {0.6f, 0.9f, 5000, 0.0f}, 3, 5},
    {"confident, k = 5000, P = 0.9", RowKind::kConfident, {1.0f, 0.9f, 5000, 0.0f}, 3, 5},
};

// distribution_stats takes the temperature alone: it reads any row twice, and four pieces of 256
// columns.
constexpr double kStatsReads = 2.0 + 4.0 * cuda::kSegment / cuda::kPieces / kVocab;
static_assert(kStatsReads < 2.01);

// What filter_logits reads, and what the two kernels of kept_indices read together.
struct WritingCase {
  const char* name;
  RowKind kind;
  Filters filters;
  double reads_16_bit;
  double reads_32_bit;
};

const WritingCase kWritingCases[] = {
    {"confident, no filter", RowKind::kConfident, {1.0f, 1.0f, 0, 0.0f}, 2, 2},
    {"confident, P = 0.9", RowKind::kConfident, {0.6f, 0.9f, 0, 0.0f}, 2, 2},
    {"ten neighbours, P = 0.9", RowKind::kNeighbours, {1.0f, 0.9f, 0, 0.0f}, 2, 2},
    {"300 peaks, P = 0.9", RowKind::kPeaked, {0.6f, 0.9f, 0, 0.0f}, 2.1, 2.1},
    {"300 peaks, top_k = 50", RowKind::kPeaked, {1.0f, 1.0f, 50, 0.0f}, 2.1, 2.1},
    {"ascending, P = 0.9", RowKind::kAscending, {0.2f, 0.9f, 0, 0.0f}, 2.3, 2.5},
    {"Gaussian, T = 2, P = 0.95", RowKind::kGaussian, {2.0f, 0.95f, 0, 0.0f}, 4, 5},
    {"half, top_k = 500, P = 0.9", RowKind::kHalf, {1.0f, 0.9f, 500, 0.0f}, 4, 5},
    {"uniform, P = 0.5", RowKind::kUniform, {1.0f, 0.5f, 0, 0.0f}, 4, 5},
    {"float neighbours, P = 0.5", RowKind::kClose, {1e-4f, 0.5f, 0, 0.0f}, 4, 5},
    {"all equal, P = 0.9", RowKind::kAllEqual, {1.0f, 0.9f, 0, 0.0f}, 4, 5},
    {"two values, P = 0.9", RowKind::kTwoValues, {1.0f, 0.9f, 0, 0.0f}, 4, 5},
    {"Gaussian, top_k = 100000", RowKind::kGaussian, {1.0f, 1.0f, 100000, 0.0f}, 4, 5},
    // The five reads of two searches that share them, and the one that writes.
    {"confident, k = 5000, P = 0.9", RowKind::kConfident, {1.0f, 0.9f, 5000, 0.0f}, 4, 6},
    {"uniform, k = 5000, P = 0.9", RowKind::kUniform, {1.0f, 0.9f, 5000, 0.0f}, 4, 6},
    {"all equal, k = 100000, P = 0.9", RowKind::kAllEqual, {1.0f, 0.9f, 100000, 0.0f}, 4, 6},
};

// Draws from one row: every one reads the unit that it falls into.
struct DrawsCase {
  const char* name;
  Filters filters;
  int num_samples;
  double reads_16_bit;
  double reads_32_bit;
};

const DrawsCase kDrawsCases[] = {
    {"uniform, no filter, 100 samples", {1.0f, 1.0f, 0, 0.0f}, 100, 1, 1},
    {"uniform, no filter, 1000 samples", {1.0f, 1.0f, 0, 0.0f}, 1000, 1, 1},
    {"uniform, P = 0.5, 100 samples", {1.0f, 0.5f, 0, 0.0f}, 100, 3, 4},
    {"uniform, P = 0.5, 1000 samples", {1.0f, 0.5f, 0, 0.0f}, 1000, 3, 4},
};

// The most reads of a row by `run`, which starts a kernel in a launch shape.
template <typename Element, typename Run>
double judge(const std::string& name, double bound, Run run) {
  constexpr double kRowBytes = sizeof(Element) * static_cast<double>(kVocab);
  double most = 0.0;
  for (const Order order : {Order::kForward, Order::kLockstep}) {
    emulation::device.order = order;
    for (const Shape shape : {Shape(1), Shape(8), portable(1), portable(8)}) {
      const uint64_t before = emulation::device.bytes_loaded;
      run(shape);
      const double reads = static_cast<double>(emulation::device.bytes_loaded - before) / kRowBytes;
      expect(reads >= 1.0 && reads <= bound, name);
      most = std::max(most, reads);
    }
  }
  return most;
}

template <typename Element>
double sample_reads(const Case& example, const std::vector<float>& row, double bound) {
  const Batch<Element> batch({row}, 0);
  const bool in_units = std::is_same_v<Element, float> && bound >= 2.0;
  return judge<Element>(example.name, bound + (in_units ? kUnits : kSegments), [&](Shape shape) {
    sample(batch, {example.filters}, shape, 1, false, kVocab);
  });
}

// The ops that read the whole row once more when they know what to do with it.
template <typename Element>
double filter_reads(const WritingCase& example, const std::vector<float>& row, double bound) {
  const Batch<Element> batch({row}, 0);
  std::vector<RowStatus> status;
  const bool in_units = std::is_same_v<Element, float> && bound >= 3.0;
  return judge<Element>(
      std::string("filter_logits, ") + example.name, bound + (in_units ? kUnits : kSegments),
      [&](Shape shape) { filter_logits(batch, example.filters, shape, kVocab, status); });
}

template <typename Element>
double kept_reads(const WritingCase& example, const std::vector<float>& row, double bound) {
  const Batch<Element> batch({row}, 0);
  const bool in_units = std::is_same_v<Element, float> && bound >= 3.0;
  return judge<Element>(std::string("kept_indices, ") + example.name,
                        bound + (in_units ? kUnits : kSegments),
                        [&](Shape shape) { kept_indices(batch, example.filters, shape, kVocab); });
}

template <typename Element>
double draws_reads(const DrawsCase& example, const std::vector<float>& row, double bound) {
  const Batch<Element> batch({row}, 0);
  // Where no filter is on, a segment is read twice for a draw: the sums of segments were floats.
  const bool in_units = std::is_same_v<Element, float> && bound >= 2.0;
  const double draw = bound < 2.0 ? 2.0 * kSegmentReads : in_units ? kUnitReads : kSegmentReads;
  const double tie = in_units ? kUnitReads : kSegmentReads;
  return judge<Element>(example.name, bound + example.num_samples * draw + tie, [&](Shape shape) {
    sample(batch, {example.filters}, shape, example.num_samples, false, kVocab);
  });
}

template <typename Element>
double stats_reads(const WritingCase& example, const std::vector<float>& row) {
  const Batch<Element> batch({row}, 0);
  std::vector<RowStatus> status;
  return judge<Element>(
      std::string("distribution_stats, ") + example.name, kStatsReads,
      [&](Shape shape) { distribution_stats(batch, example.filters.temperature, shape, status); });
}

}  // namespace

int main() {
  std::printf("%-36s %8s %8s %8s\n", "reads of the row", "bf16", "fp16", "fp32");
  for (const Case& example : kCases) {
    std::mt19937_64 random(3);
    const std::vector<float> row = make_row(example.kind, kVocab, random);
    std::printf("%-36s %8.3f %8.3f %8.3f\n", example.name,
                sample_reads<cuda::BFloat16>(example, row, example.reads_16_bit),
                sample_reads<cuda::Float16>(example, row, example.reads_16_bit),
                sample_reads<float>(example, row, example.reads_32_bit));
  }
  for (const DrawsCase& example : kDrawsCases) {
    std::mt19937_64 random(3);
    const std::vector<float> row = make_row(RowKind::kUniform, kVocab, random);
    std::printf("%-36s %8.3f %8.3f %8.3f\n", example.name,
                draws_reads<cuda::BFloat16>(example, row, example.reads_16_bit),
                draws_reads<cuda::Float16>(example, row, example.reads_16_bit),
                draws_reads<float>(example, row, example.reads_32_bit));
  }
  std::printf("%-36s %26s %26s %26s\n", "", "filter_logits", "kept_indices", "distribution_stats");
  std::printf("%-36s", "reads of the row");
  for (int op = 0; op < 3; ++op) std::printf(" %8s %8s %8s", "bf16", "fp16", "fp32");
  std::printf("\n");
  for (const WritingCase& example : kWritingCases) {
    std::mt19937_64 random(3);
    const std::vector<float> row = make_row(example.kind, kVocab, random);
    std::printf("%-36s %8.3f %8.3f %8.3f", example.name,
                filter_reads<cuda::BFloat16>(example, row, example.reads_16_bit),
                filter_reads<cuda::Float16>(example, row, example.reads_16_bit),
                filter_reads<float>(example, row, example.reads_32_bit));
    std::printf(" %8.3f %8.3f %8.3f",
                kept_reads<cuda::BFloat16>(example, row, example.reads_16_bit),
                kept_reads<cuda::Float16>(example, row, example.reads_16_bit),
                kept_reads<float>(example, row, example.reads_32_bit));
    std::printf(" %8.3f %8.3f %8.3f\n", stats_reads<cuda::BFloat16>(example, row),
                stats_reads<cuda::Float16>(example, row), stats_reads<float>(example, row));
  }
  std::printf("%s\n", failures == 0 ? "emulated reads: all passed" : "emulated reads: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
