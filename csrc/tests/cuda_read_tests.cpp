// Bytes of logits that the kernels load, over the bytes of the row: the table of docs/kernels.md.
// A segment of 1024 columns is read once more for the draw, and one more where the last kept token
// is tied with one that is not.
#include <cstdlib>

#include "emulated_kernels.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;

constexpr int kVocab = 151936;
// The draw, a tie, and one that turns float sums into exact ones.
constexpr double kSegments = 3.0 * cuda::kSegment / kVocab;

struct Case {
  const char* name;
  RowKind kind;
  Filters filters;
  int reads_16_bit;
  int reads_32_bit;
};

const Case kCases[] = {
    {"peaked, T = 0", RowKind::kPeaked, {0.0f, 0.9f, 0, 0.0f}, 1, 1},
    {"peaked, no filter", RowKind::kPeaked, {1.0f, 1.0f, 0, 0.0f}, 1, 1},
    {"all equal, no filter", RowKind::kAllEqual, {1.0f, 1.0f, 0, 0.0f}, 1, 1},
    {"peaked, P = 0.9", RowKind::kPeaked, {0.6f, 0.9f, 0, 0.0f}, 1, 1},
    {"peaked, P = 0.99", RowKind::kPeaked, {0.6f, 0.99f, 0, 0.0f}, 1, 1},
    {"peaked, top_k = 50", RowKind::kPeaked, {0.6f, 1.0f, 50, 0.0f}, 1, 1},
    {"peaked, top_k = 50, P = 0.9", RowKind::kPeaked, {0.6f, 0.9f, 50, 0.0f}, 1, 1},
    {"peaked, min_p = 0.05", RowKind::kPeaked, {0.6f, 1.0f, 0, 0.05f}, 1, 1},
    {"ascending, P = 0.9", RowKind::kAscending, {0.2f, 0.9f, 0, 0.0f}, 3, 5},
    {"Gaussian, T = 2, P = 0.95", RowKind::kGaussian, {2.0f, 0.95f, 0, 0.0f}, 3, 5},
    {"uniform, P = 0.5", RowKind::kUniform, {1.0f, 0.5f, 0, 0.0f}, 3, 5},
    {"uniform, P = 0.999999", RowKind::kUniform, {1.0f, 0.999999f, 0, 0.0f}, 3, 5},
    {"all equal, P = 0.9", RowKind::kAllEqual, {1.0f, 0.9f, 0, 0.0f}, 3, 5},
    {"two values, P = 0.9", RowKind::kTwoValues, {1.0f, 0.9f, 0, 0.0f}, 3, 5},
    {"float neighbours, P = 0.5", RowKind::kClose, {1e-4f, 0.5f, 0, 0.0f}, 3, 5},
    {"Gaussian, T = 1e30, P = 0.9", RowKind::kGaussian, {1e30f, 0.9f, 0, 0.0f}, 3, 5},
    {"Gaussian, top_k = 100000", RowKind::kGaussian, {1.0f, 1.0f, 100000, 0.0f}, 3, 5},
    {"Gaussian, min_p = 1e-9", RowKind::kGaussian, {1.0f, 1.0f, 0, 1e-9f}, 2, 2},
    {"uniform, top_k = 100000, P = 0.9", RowKind::kUniform, {1.0f, 0.9f, 100000, 0.0f}, 5, 9},
};

template <typename Element>
double reads(const std::vector<float>& row, const Filters& filters, int cluster) {
  const Batch<Element> batch({row}, 0);
  const SampleResult result = sample(batch, {filters}, cluster, 1, false, kVocab);
  return static_cast<double>(result.bytes_loaded) / (sizeof(Element) * static_cast<double>(kVocab));
}

}  // namespace

int main() {
  std::printf("%-34s %8s %8s %8s %8s\n", "reads of the row (blocks a row)", "bf16 (1)", "bf16 (8)",
              "fp32 (1)", "fp32 (8)");
  for (const Case& example : kCases) {
    std::mt19937_64 random(3);
    const std::vector<float> row = make_row(example.kind, kVocab, random);
    const double values[] = {reads<cuda::BFloat16>(row, example.filters, 1),
                             reads<cuda::BFloat16>(row, example.filters, 8),
                             reads<float>(row, example.filters, 1),
                             reads<float>(row, example.filters, 8)};
    std::printf("%-34s %8.3f %8.3f %8.3f %8.3f\n", example.name, values[0], values[1], values[2],
                values[3]);
    for (int i = 0; i < 4; ++i) {
      const int bound = i < 2 ? example.reads_16_bit : example.reads_32_bit;
      expect(values[i] >= 1.0 && values[i] <= bound + kSegments, example.name);
    }
  }
  std::printf("%s\n", failures == 0 ? "emulated reads: all passed" : "emulated reads: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
