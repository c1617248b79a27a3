// The training losses on the CPU, against a sort in float64, on buffers with no spare byte.
// Compiled once per instruction set, like the kernels.
#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "autodeco/soft_top_p.h"
#include "native_isa.h"
#include "native_loss.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;

float from_bfloat16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

void functions_are_as_accurate_as_they_say() {
  for (double x = -700.0; x < 0.5; x += 0.37) {
    expect(is_near(exponential(x), std::exp(x), 1e-15, 0.0), "exponential " + std::to_string(x));
  }
  expect(exponential(-1e300) == 0.0 && exponential(0.0) == 1.0, "exponential at its ends");
  for (double z = 1e-12; z < 1e9; z *= 1.7) {
    const std::string what = std::to_string(z);
    expect(is_near(one_minus_exponential(z), -std::expm1(-z), 1e-15, 0.0), "1 - e^-z " + what);
    expect(is_near(slice_factor(z), z / std::expm1(z), 1e-10, 1e-300), "slice_factor " + what);
    expect(is_near(logarithm_1p(z), std::log1p(z), 1e-15, 0.0), "logarithm_1p " + what);
    expect(is_near(logarithm(z), std::log(z), 1e-15, 1e-15), "logarithm " + what);
  }
}

// A group of equal tokens gives what its tokens give one by one.
void groups_are_their_tokens() {
  for (const bool exclusive : {false, true}) {
    for (const double top_p : {0.0, 0.25, 0.555, 0.7011, 0.9983, 1.0}) {
      SoftTopPWalk single{30.0, top_p, exclusive};
      SoftTopPWalk grouped = single;
      for (const auto& [count, probability, lambda] :
           {std::tuple{3, 0.1, 0.4}, {40, 0.01, -0.1}, {1000, 0.0003, -0.27}}) {
        for (int i = 0; i < count; ++i) single.add(probability, lambda);
        const TokenGroup group = {count * probability, lambda, probability};
        grouped.add(group, grouped.crosses(group) ? grouped.head_of_equals(group)
                                                  : grouped.all_or_nothing(group));
      }
      expect(is_near(grouped.head, single.head, 1e-12, 1e-14), "head of groups");
      expect(is_near(grouped.tail, single.tail, 1e-10, 1e-14), "tail of groups");
      expect(is_near(grouped.trend, single.trend, 1e-9, 1e-12), "trend of groups");
      expect(is_near(grouped.leaning, single.leaning, 1e-10, 1e-13), "leaning of groups");
    }
  }
}

void losses_agree_with_a_sort() {
  std::mt19937_64 random(3);
  std::uniform_real_distribution<float> uniform;
  const float temperatures[] = {0.005f, 0.05f, 0.3f, 0.7f, 1.0f, 1.5f, 2.0f};
  const float masses[] = {0.0f, 0.01f, 0.3f, 0.7f, 0.9f, 0.99f, 0.999f, 1.0f};
  int compared = 0;
  for (int trial = 0; trial < 400; ++trial) {
    const RowKind kind = static_cast<RowKind>(random() % static_cast<uint64_t>(RowKind::kNumKinds));
    if (kind == RowKind::kTiny || kind == RowKind::kHuge) continue;
    const int vocab = 1 + static_cast<int>(random() % (trial % 20 == 0 ? 40000 : 1500));
    std::vector<float> row = make_row(kind, vocab, random);
    std::vector<uint16_t> half(vocab);
    const bool narrow = trial % 3 == 0;
    for (int i = 0; narrow && i < vocab; ++i) {
      half[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(row[i]) >> 16);
      row[i] = from_bfloat16(half[i]);
    }
    Batch batch(narrow ? static_cast<const void*>(half.data()) : row.data(),
                narrow ? DType::kBFloat16 : DType::kFloat32, 1, vocab);
    batch.arguments.options.exclusive = trial % 2 == 0;
    batch.arguments.options.megatron = trial % 5 == 0;
    if (batch.arguments.options.megatron) {
      batch.arguments.options.temperature_clamp = 0.0f;
      batch.arguments.options.top_p_temperature_clamp = 0.0f;
    }
    batch.temperature[0] = temperatures[random() % std::size(temperatures)];
    batch.top_p[0] = masses[random() % std::size(masses)];
    const Oracle oracle(row, 1.0);
    const int rank = trial % 4 == 0 ? 0 : static_cast<int>(random() % oracle.num_finite);
    const int label = oracle.order[trial % 4 == 1 ? rank % 10 % oracle.num_finite : rank];
    batch.labels[0] = label;
    batch.run();
    const Exact exact =
        exact_losses(row, batch.temperature[0], batch.top_p[0], label, batch.arguments.options);
    const std::string what = "trial " + std::to_string(trial) + " kind " +
                             std::to_string(static_cast<int>(kind)) + " vocab " +
                             std::to_string(vocab) + " T " + std::to_string(batch.temperature[0]) +
                             " P " + std::to_string(batch.top_p[0]);
    expect(batch.status[0] == RowStatus::kValid, "status: " + what);
    expect(is_near(batch.losses[0], exact.losses[0], 1e-5, 1e-30), "temperature loss: " + what);
    expect(is_near(batch.gradients[0], exact.gradients[0], 1e-4, 1e-5 * exact.scales[0] + 1e-30),
           "its gradient: " + what);
    // Within rounding of P, the crossing token may be either of two.
    if (exact.margin < 2e-7 && batch.top_p[0] > 0.0f && batch.top_p[0] < 1.0f) continue;
    ++compared;
    expect(is_near(batch.losses[1], exact.losses[1], 1e-5, 1e-30), "soft top-p loss: " + what);
    expect(is_near(batch.gradients[1], exact.gradients[1], 1e-4, 1e-4 * exact.scales[1] + 1e-30),
           "its gradient by T: " + what);
    expect(is_near(batch.gradients[2], exact.gradients[2], 1e-4, 2e-7 * exact.scales[2] + 1e-30),
           "its gradient by P: " + what);
    for (int loss = 0; loss < 2; ++loss) {
      const std::vector<float> of_losses = {loss == 0 ? 1.0f : 0.0f, loss == 1 ? 1.0f : 0.0f};
      std::vector<float> got;
      if (narrow) {
        const std::vector<uint16_t> bits = batch.gradient_of_logits<uint16_t>(of_losses);
        std::transform(bits.begin(), bits.end(), std::back_inserter(got), from_bfloat16);
      } else {
        got = batch.gradient_of_logits<float>(of_losses);
      }
      const double rounding = narrow ? 0x1p-8 : 0.0;  // of the output
      double scale = 0.0;
      double sum = 0.0;
      double sizes = 0.0;
      for (int i = 0; i < vocab; ++i) {
        scale = std::max(scale, std::fabs(exact.of_logits[loss][i]));
        sum += got[i];
        sizes += std::fabs(got[i]);
      }
      bool right = std::fabs(sum) <= 1e-5 * scale * std::sqrt(vocab) + rounding * sizes + 1e-30;
      for (int i = 0; i < vocab; ++i) {
        right &= is_near(got[i], exact.of_logits[loss][i], 1e-3 + rounding, 2e-4 * scale + 1e-30);
      }
      expect(right, "gradient of the logits, loss " + std::to_string(loss) + ": " + what);
    }
  }
  expect(compared > 200, "most rows are compared");
}

// Rows whose logits differ by less than float32 tells apart once they are divided by T, or whose
// differences are subnormal, so that no slot width of theirs has a finite inverse.
void logits_that_hardly_differ_are_walked() {
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal;
  for (const int vocab : {4097, 20000, 151936}) {
    for (const float size : {1e-30f, 1e-40f, 1e-42f}) {
      for (const bool half : {false, true}) {
        std::vector<float> row(vocab);
        std::vector<uint16_t> narrow(vocab);
        for (int i = 0; i < vocab; ++i) {
          row[i] = (half && i % 2 == 0 ? 1e-5f : size) * normal(random);
          narrow[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(row[i]) >> 16);
        }
        for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
          const bool is_narrow = dtype == DType::kBFloat16;
          for (int i = 0; is_narrow && i < vocab; ++i) {
            row[i] = from_bfloat16(narrow[i]);
          }
          const float masses[] = {0.1f, 0.5f, 0.9f, 0.999f};
          const float top_p = masses[random() % std::size(masses)];
          const int label = static_cast<int>(random() % vocab);
          Batch batch(is_narrow ? static_cast<const void*>(narrow.data()) : row.data(), dtype, 1,
                      vocab);
          batch.temperature[0] = 0.05f;
          batch.top_p[0] = top_p;
          batch.labels[0] = label;
          batch.run();
          const Exact exact = exact_losses(row, 0.05f, top_p, label, batch.arguments.options);
          const std::string what = "vocab " + std::to_string(vocab) + " size " +
                                   std::to_string(std::log10(size)) + " P " +
                                   std::to_string(top_p) + (half ? " half" : "");
          expect(is_near(batch.losses[1], exact.losses[1], 1e-5, 0.0), "close logits: " + what);
          expect(is_near(batch.gradients[2], exact.gradients[2], 1e-4, 1e-5 * exact.scales[2]),
                 "close logits, gradient by P: " + what);
        }
      }
    }
  }
}

// The crossing token of a row is found among tokens whose weights do differ, at a T so small that
// their logits differ by subnormal amounts only.
void subnormal_differences_are_told_apart() {
  std::mt19937_64 random(6);
  std::normal_distribution<float> normal;
  constexpr int kVocab = 3000;
  constexpr float kTemperature = 1e-37f;
  std::vector<float> row(kVocab);
  for (float& logit : row) logit = 3e-38f * normal(random);
  Batch batch(row.data(), DType::kFloat32, 1, kVocab);
  batch.arguments.options.top_p_temperature_clamp = 0.0f;
  batch.arguments.options.temperature_clamp = 0.0f;
  batch.temperature[0] = kTemperature;
  batch.top_p[0] = 0.5f;
  batch.labels[0] = 5;
  batch.run();
  const Exact exact = exact_losses(row, kTemperature, 0.5, 5, batch.arguments.options);
  expect(is_near(batch.losses[1], exact.losses[1], 1e-5, 0.0), "subnormal differences");
}

void rows_that_do_not_count_are_not_read() {
  Batch batch(nullptr, DType::kFloat32, 3, 1000);
  batch.labels = {-100, -100, -100};
  batch.arguments.labels = batch.labels.data();
  batch.temperature[1] = std::numeric_limits<float>::quiet_NaN();
  batch.run();
  for (int i = 0; i < 6; ++i) expect(batch.losses[i] == 0.0f && !batch.counted[i], "ignored");
  for (const float gradient : batch.gradients) expect(gradient == 0.0f, "ignored: gradient");
  for (const float value : batch.gradient_of_logits<float>({1, 1, 1, 1, 1, 1})) {
    expect(value == 0.0f, "ignored: gradient of the logits");
  }
}

// In the bits of a dtype; those of a half and of infinity are given.
template <typename Bits>
void faults_are_named_and_stay_in_their_row(DType dtype, Bits half, Bits infinity) {
  constexpr int kVocab = 70;
  constexpr Bits kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  const Bits minus_infinity = kSign | infinity;
  const auto is_nan = [&](Bits bits) { return (bits | kSign) > minus_infinity; };
  std::vector<Bits> logits(9 * kVocab, half);
  logits[1 * kVocab + 69] = infinity + 1;
  logits[2 * kVocab + 3] = infinity;
  std::fill(logits.begin() + 3 * kVocab, logits.begin() + 4 * kVocab, minus_infinity);
  logits[8 * kVocab + 1] = minus_infinity;
  Batch batch(logits.data(), dtype, 9, kVocab);
  batch.temperature[4] = -1.0f;
  batch.top_p[5] = 1.5f;
  batch.labels = {1, 1, 1, 1, 1, 1, kVocab, -1, 1};
  batch.arguments.labels = batch.labels.data();
  batch.run();
  const RowStatus wanted[] = {RowStatus::kValid,
                              RowStatus::kLogitNaN,
                              RowStatus::kLogitPositiveInfinity,
                              RowStatus::kNoFiniteLogit,
                              RowStatus::kTemperatureInvalid,
                              RowStatus::kTopPOutsideUnit,
                              RowStatus::kLabelOutsideVocab,
                              RowStatus::kLabelOutsideVocab,
                              RowStatus::kValid};
  const std::vector<Bits> of_logits = batch.gradient_of_logits<Bits>(std::vector<float>(18, 1.0f));
  for (int row = 0; row < 9; ++row) {
    const std::string what =
        "row " + std::to_string(row) + " of dtype " + std::to_string(static_cast<int>(dtype));
    const bool valid = wanted[row] == RowStatus::kValid;
    expect(batch.status[row] == wanted[row], "status of " + what);
    for (int i = 0; i < 2; ++i) {
      expect(std::isnan(batch.losses[9 * i + row]) == !valid && batch.counted[9 * i + row],
             "loss of " + what);
    }
    for (int i = 0; i < kVocab; ++i) {
      expect(is_nan(of_logits[row * kVocab + i]) == !valid, "gradient of " + what);
    }
  }
  expect(batch.losses[8] == 0.0f && batch.losses[17] == 0.0f, "a label that is masked out");
}

// 0 times an infinite -ln q: the label has no mass left in double, and probability_eps adds none.
void labels_without_weight_cost_nothing() {
  for (const float below : {110.0f, 800.0f, 1e30f}) {
    const std::vector<float> logits = {0.0f, 1.0f, 1.0f - below, -2.0f};
    for (const float temperature : {0.05f, 1.0f}) {
      Batch batch(logits.data(), DType::kFloat32, 1, 4);
      batch.arguments.options.probability_eps = 0.0;
      batch.labels[0] = 2;
      batch.temperature[0] = temperature;
      batch.run();
      const std::string what = std::to_string(below) + " below at T " + std::to_string(temperature);
      expect(batch.losses[0] <= 1e-30f && batch.losses[1] == 0.0f, "no weight, no loss: " + what);
      for (const float gradient : batch.gradients) {
        expect(std::fabs(gradient) <= 1e-30f, "no weight, no gradient: " + what);
      }
      for (const float gradient : batch.gradient_of_logits<float>({1.0f, 1.0f})) {
        expect(std::fabs(gradient) <= 1e-30f, "no weight, no gradient of the logits: " + what);
      }
    }
  }
}

// A gradient of the losses over T beyond float32: tokens without weight still get 0.
void tiny_temperatures_leave_weightless_tokens_at_zero() {
  const std::vector<float> logits = {0.0f, 1.0f, 0.5f, -2.0f, 0.9f};
  for (const float clamp : {0.0f, 0.5f}) {
    for (const int label : {1, 4}) {
      Batch batch(logits.data(), DType::kFloat32, 1, 5);
      // Two temperatures or one.
      batch.arguments.options.temperature_clamp = 0.0f;
      batch.arguments.options.top_p_temperature_clamp = clamp;
      batch.temperature[0] = 1e-36f;
      batch.labels[0] = label;
      batch.run();
      const std::vector<float> got = batch.gradient_of_logits<float>({65536.0f, 65536.0f});
      const std::string what = "clamp " + std::to_string(clamp) + " label " + std::to_string(label);
      for (const float value : got) expect(!std::isnan(value), "tiny T gives a NaN: " + what);
      for (const int other : {0, 2, 3}) {
        expect(clamp > 0.0f || got[other] == 0.0f, "tiny T, a token without weight: " + what);
      }
    }
  }
}

void easy_tokens_are_dropped() {
  const std::vector<float> logits = {2.0f, 2.0f, 1.0f, 2.0f, 2.0f, 1.0f, 2.0f, 2.0f, 1.0f};
  const std::vector<float> uniform = {0.5f, 0.5f, 0.7f};
  for (const bool megatron : {false, true}) {
    Batch batch(logits.data(), DType::kFloat32, 3, 3);
    batch.labels = {0, 1, 0};  // among equals the lowest index is the argmax
    batch.arguments.labels = batch.labels.data();
    batch.arguments.drop_uniform = uniform.data();
    batch.arguments.easy_token_drop = 0.6f;
    batch.arguments.options.megatron = megatron;
    batch.run();
    expect(!batch.counted[0] && batch.counted[1] && batch.counted[2], "temperature loss");
    expect(batch.counted[3] == !megatron && batch.counted[4] && batch.counted[5], "top-p loss");
    expect((batch.losses[0] == 0.0f) && (batch.losses[3] == 0.0f) == megatron, "dropped losses");
  }
}

void a_row_is_the_same_alone_and_in_a_batch() {
  std::mt19937_64 random(4);
  constexpr int kVocab = 3333;
  constexpr int kRows = 4;
  std::vector<float> logits;
  for (int row = 0; row < kRows; ++row) {
    const std::vector<float> one = make_row(static_cast<RowKind>(row), kVocab, random);
    logits.insert(logits.end(), one.begin(), one.end());
  }
  Batch all(logits.data(), DType::kFloat32, kRows, kVocab);
  for (int row = 0; row < kRows; ++row) all.labels[row] = 7 * row;
  all.run();
  for (int row = 0; row < kRows; ++row) {
    const std::vector<float> copy(logits.begin() + row * kVocab,
                                  logits.begin() + (row + 1) * kVocab);
    Batch one(copy.data(), DType::kFloat32, 1, kVocab);
    one.labels[0] = all.labels[row];
    one.run();
    for (int i = 0; i < 3; ++i) {
      expect(one.gradients[i] == all.gradients[i * kRows + row], "the same gradients alone");
    }
    for (int i = 0; i < 2; ++i) {
      expect(one.losses[i] == all.losses[i * kRows + row], "the same losses alone");
    }
  }
}

}  // namespace

int main() {
  if (!processor_has_isa()) return kSkipped;
  functions_are_as_accurate_as_they_say();
  groups_are_their_tokens();
  losses_agree_with_a_sort();
  logits_that_hardly_differ_are_walked();
  subnormal_differences_are_told_apart();
  rows_that_do_not_count_are_not_read();
  faults_are_named_and_stay_in_their_row<uint32_t>(DType::kFloat32, 0x3f000000, 0x7f800000);
  faults_are_named_and_stay_in_their_row<uint16_t>(DType::kBFloat16, 0x3f00, 0x7f80);
  faults_are_named_and_stay_in_their_row<uint16_t>(DType::kFloat16, 0x3800, 0x7c00);
  labels_without_weight_cost_nothing();
  tiny_temperatures_leave_weightless_tokens_at_zero();
  easy_tokens_are_dropped();
  a_row_is_the_same_alone_and_in_a_batch();
  std::printf("%s\n", failures == 0 ? "losses: all passed" : "losses: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
