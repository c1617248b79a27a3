// Bytes of logits that the loss kernel loads, over the bytes of the row: the table of
// docs/loss-kernels.md. The largest of two labels, the first token and one of the middle.
#include <cstdlib>
#include <optional>

#include "emulated_loss_gradient.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;

constexpr int kVocab = 151936;

struct Case {
  const char* name;
  RowKind kind;
  float temperature;
  float top_p;
  double bfloat16;
  double float16;
  double float32;
  float temperature_clamp = 0.01f;
  std::optional<float> last_logit = {};
};

// Flat rows are read a second time for the tokens around P.
const Case kCases[] = {
    {"5 tokens far above the rest, P = 0.9", RowKind::kConfident, 1.0f, 0.9f, 1, 1.1, 1.1},
    {"5 tokens far above the rest, P = 0.99", RowKind::kConfident, 1.0f, 0.99f, 1, 1.1, 1.1},
    {"ten equal neighbours, P = 0.9", RowKind::kNeighbours, 1.0f, 0.9f, 1, 1.1, 1.1},
    {"300 peaks, P = 0.9", RowKind::kPeaked, 0.6f, 0.9f, 1, 1.3, 1.3},
    {"300 peaks, T = 1, P = 0.9", RowKind::kPeaked, 1.0f, 0.9f, 1, 1.3, 1.3},
    {"300 peaks, P = 1", RowKind::kPeaked, 0.6f, 1.0f, 1, 1.3, 1.3},
    {"Gaussian, T = 2, P = 0.95", RowKind::kGaussian, 2.0f, 0.95f, 1, 2, 2},
    {"Gaussian, P = 0.5", RowKind::kGaussian, 1.0f, 0.5f, 1, 2, 2},
    {"Gaussian, P = 1", RowKind::kGaussian, 1.0f, 1.0f, 1, 1.3, 1.3},
    {"uniform, P = 0.5", RowKind::kUniform, 1.0f, 0.5f, 1, 2, 2},
    {"uniform, P = 0.999999", RowKind::kUniform, 1.0f, 0.999999f, 1, 2, 2},
    {"uniform, T = 100, P = 0.9", RowKind::kUniform, 100.0f, 0.9f, 1, 4, 4},
    {"all equal, P = 0.9", RowKind::kAllEqual, 1.0f, 0.9f, 1, 1, 1},
    {"two values, P = 0.9", RowKind::kTwoValues, 1.0f, 0.9f, 1, 1, 1},
    {"float neighbours, P = 0.5", RowKind::kClose, 1.0f, 0.5f, 1, 4, 4},
    {"float neighbours, T = 1e-4, P = 0.5", RowKind::kClose, 1e-4f, 0.5f, 1, 4, 4},
    {"huge logits, P = 0.9", RowKind::kHuge, 1.0f, 0.9f, 3, 4, 4},
    {"Gaussian, T = 1e30, P = 0.9", RowKind::kGaussian, 1e30f, 0.9f, 1, 4, 4},
    {"ascending, T = 0.2, P = 0.9", RowKind::kAscending, 0.2f, 0.9f, 1, 2, 2},
    // T below the clamp of the temperature loss: it has a softmax of its own.
    {"Gaussian, T = 0.005, P = 0.9", RowKind::kGaussian, 0.005f, 0.9f, 1, 2.01, 2.01},
    {"float neighbours, T = 1 < 2, P = 0.5", RowKind::kClose, 1.0f, 0.5f, 1, 4, 4, 2.0f},
    // Too small a logit for the table of the bfloat16 values.
    {"uniform and 1e-12, P = 0.5", RowKind::kUniform, 1.0f, 0.5f, 3, 2, 2, 0.01f, 1e-12f},
    {"uniform and 1e-12, T = 1e4", RowKind::kUniform, 1e4f, 0.5f, 4, 4, 4, 0.01f, 1e-12f},
};

// Reads of the gradient of the logits, less those of the losses.
struct {
  double low = 1e9;
  double high = 0.0;
} gradient_more;

template <typename Element>
double judge(const Case& example, const std::vector<float>& row, double bound) {
  const Batch<Element> batch({row}, 0);
  const LossOracle oracle(batch.rows[0], 0);
  double most = 0.0;
  for (const int rank : {0, kVocab / 2}) {
    LossInputs inputs;
    inputs.temperature = {example.temperature};
    inputs.top_p = {example.top_p};
    inputs.labels = {oracle.order[rank]};
    inputs.options.temperature_clamp = example.temperature_clamp;
    const LossResult result = autodeco_loss(batch, inputs);
    const double reads =
        static_cast<double>(result.bytes_loaded) / (sizeof(Element) * static_cast<double>(kVocab));
    expect(result.status[0] == RowStatus::kValid, example.name);
    expect(reads >= 1.0 && reads <= bound,
           std::string(example.name) + ": " + std::to_string(reads));
    most = std::max(most, reads);
    const LogitsGradient<Element> gradient =
        logits_gradient(batch, inputs, Upstream(1, 1.0f, 1.0f));
    const double more = static_cast<double>(gradient.bytes_loaded - result.bytes_loaded) /
                        (sizeof(Element) * static_cast<double>(kVocab));
    // Heavy tokens are read once more when they have been sorted.
    expect(
        more >= 1.0 && more <= 1.0 + cuda::kHeavyCapacity / static_cast<double>(kVocab),
        std::string(example.name) + ", gradient of the logits: " + std::to_string(more) + " more");
    gradient_more.low = std::min(gradient_more.low, more);
    gradient_more.high = std::max(gradient_more.high, more);
  }
  return most;
}

}  // namespace

int main() {
  std::printf("%-40s %8s %8s %8s\n", "reads of the row", "bf16", "fp16", "fp32");
  for (const Case& example : kCases) {
    std::mt19937_64 random(3);
    std::vector<float> row = make_row(example.kind, kVocab, random);
    if (example.last_logit.has_value()) row.back() = *example.last_logit;
    const double bfloat16 = judge<cuda::BFloat16>(example, row, example.bfloat16);
    const double float16 = judge<cuda::Float16>(example, row, example.float16);
    const double float32 = judge<float>(example, row, example.float32);
    std::printf("%-40s %8.3f %8.3f %8.3f\n", example.name, bfloat16, float16, float32);
  }
  std::printf("gradient of the logits: %.3f to %.3f reads more\n", gradient_more.low,
              gradient_more.high);
  std::printf("%s\n",
              failures == 0 ? "emulated loss reads: all passed" : "emulated loss reads: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
