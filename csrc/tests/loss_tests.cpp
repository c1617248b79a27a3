// The training losses on the CPU, against a sort in float64, on buffers with no spare byte.
// Compiled once per instruction set, like the kernels.
#include <bit>
#include <cstdlib>
#include <memory>
#include <string_view>

#include "autodeco/autodeco_loss.h"
#include "autodeco/soft_top_p.h"
#include "emulated_rows.h"
#include "isa.h"

namespace autodeco::cpu::AUTODECO_ISA {
const KernelTable& kernels();
}

namespace {

using namespace autodeco;
using namespace autodeco::tests;

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE in CMakeLists.txt

bool is_near(double got, double wanted, double relative, double absolute) {
  return std::fabs(got - wanted) <= relative * std::fabs(wanted) + absolute;
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

struct Exact {
  double losses[2];
  double gradients[3];
  double scales[3];  // what the terms of a gradient would be without their signs
  double margin;     // distance of P from the nearest C
  std::vector<double> of_logits[2];
};

Exact exact_losses(const std::vector<float>& row, double temperature, double top_p, int label,
                   const LossOptions& options) {
  const double a = options.steepness;
  const size_t vocab = row.size();
  Exact exact = {};
  const auto softmax = [&](double t) {
    Oracle oracle(row, t);
    double total = 0.0;
    for (const double weight : oracle.weight) total += weight;
    for (double& weight : oracle.weight) weight /= total;
    return oracle;
  };
  const auto lambdas = [&](const Oracle& oracle, double t) {
    const double max = row[oracle.order[0]];
    std::vector<double> x(vocab);
    double mean = 0.0;
    for (size_t i = 0; i < vocab; ++i) {
      x[i] = std::isinf(row[i]) ? 0.0 : (max - static_cast<double>(row[i])) / t;
      mean += oracle.weight[i] * x[i];
    }
    for (double& value : x) value = mean - value;
    return x;
  };
  const double unit_weight = softmax(1.0).weight[label];

  const double t = std::max(temperature, static_cast<double>(options.temperature_clamp));
  const Oracle plain = softmax(t);
  const std::vector<double> plain_lambda = lambdas(plain, t);
  const double weight = options.megatron ? plain.weight[label] : unit_weight;
  double others = 0.0;
  for (size_t i = 0; i < vocab; ++i) others += static_cast<int>(i) == label ? 0.0 : plain.weight[i];
  const double largest = plain.weight[plain.order[0]];
  const double distance = (static_cast<double>(row[plain.order[0]]) - row[label]) / t;
  exact.losses[0] =
      weight * (plain.order[0] == label ? -std::log1p(-others) : distance - std::log(largest));
  const bool moves = temperature >= static_cast<double>(options.temperature_clamp);
  exact.gradients[0] = moves ? weight * plain_lambda[label] / t : 0.0;
  exact.of_logits[0].resize(vocab);
  for (size_t i = 0; i < vocab; ++i) {
    exact.of_logits[0][i] = weight / t * (static_cast<int>(i) == label ? -others : plain.weight[i]);
    exact.scales[0] += weight / t * plain.weight[i] * std::fabs(plain_lambda[i]);
  }

  const double tp = std::max(temperature, static_cast<double>(options.top_p_temperature_clamp));
  const Oracle oracle = softmax(tp);
  const std::vector<double> lambda = lambdas(oracle, tp);
  std::vector<double> c(vocab), d(vocab), u(vocab), m(vocab);
  double mass = 0.0;
  double slope = 0.0;
  exact.margin = 1.0;
  for (const int i : oracle.order) {
    const double mass_before = mass;
    const double slope_before = slope;
    mass += oracle.weight[i];
    slope += oracle.weight[i] * lambda[i];
    c[i] = std::min(options.exclusive ? mass_before : mass, 1.0);
    d[i] = options.exclusive ? slope_before : slope;
    m[i] = c[i] > top_p ? std::exp(-a * (c[i] - top_p)) : 1.0;
    u[i] = oracle.weight[i] * m[i];
    exact.margin = std::min(exact.margin, std::fabs(c[i] - top_p));
  }
  double head = 0.0, tail = 0.0, rest = options.mass_eps, trend = 0.0, leaning = 0.0, terms = 0.0;
  for (size_t i = 0; i < vocab; ++i) {
    const bool in_tail = c[i] > top_p;
    (in_tail ? tail : head) += u[i];
    leaning += in_tail ? u[i] * c[i] : 0.0;
    if (static_cast<int>(i) == label) continue;
    rest += u[i];
    const double term = u[i] * (lambda[i] - (in_tail ? a * d[i] : 0.0));
    trend += term;
    terms += std::fabs(term);
  }
  const double total = rest + u[label];
  const double q = u[label] / total;
  const double r = q / (q + options.probability_eps);
  const bool one = c[label] > top_p;
  const double own = -lambda[label] + (one ? a * d[label] : 0.0);
  exact.losses[1] = unit_weight * (q > 0.5 ? -std::log1p(-rest / total + options.probability_eps)
                                           : -std::log(q + options.probability_eps));
  const bool top_p_moves = temperature >= static_cast<double>(options.top_p_temperature_clamp);
  const double factor = unit_weight * r / tp;
  exact.gradients[1] = top_p_moves ? -factor * (own * rest + trend) / total : 0.0;
  exact.scales[1] = factor * (std::fabs(own) * rest + terms) / total;
  exact.gradients[2] =
      unit_weight * (one ? -r * a * (head + options.mass_eps) / total : r * a * tail / total);
  exact.scales[2] = unit_weight * r * a / total;
  const double mean = -r + r / total * (head + tail - a * leaning) + (one ? a * r * c[label] : 0.0);
  exact.of_logits[1].resize(vocab);
  double later = 0.0;  // U
  bool upto_label = false;
  double sum = 0.0;
  for (size_t place = vocab; place-- > 0;) {
    const int i = oracle.order[place];
    const double share = c[i] > top_p ? u[i] : 0.0;
    const double before = later;
    later += share;
    const double h = m[i] - a * (options.exclusive ? before : later);
    if (i == label && !options.exclusive) upto_label = true;
    exact.of_logits[1][i] = unit_weight * oracle.weight[i] / tp *
                            (r / total * h + (one && upto_label ? a * r : 0.0) - mean);
    if (i == label) upto_label = true;
    if (i != label) sum += exact.of_logits[1][i];
  }
  exact.of_logits[1][label] = -sum;
  return exact;
}

// Rows in buffers of their exact size.
struct Batch {
  std::vector<float> temperature, top_p, losses, gradients;
  std::vector<int64_t> labels;
  std::unique_ptr<bool[]> counted;
  std::vector<RowStatus> status;
  AutodecoLossArguments arguments;

  Batch(const void* logits, DType dtype, int64_t rows, int64_t vocab)
      : temperature(rows, 1.0f),
        top_p(rows, 0.5f),
        losses(2 * rows),
        gradients(3 * rows),
        labels(rows),
        counted(new bool[2 * rows]),
        status(rows, RowStatus::kNoFiniteLogit) {
    arguments.logits = logits;
    arguments.dtype = dtype;
    arguments.layout.num_rows = arguments.layout.sizes[0] = rows;
    arguments.layout.vocab = arguments.layout.strides[0] = vocab;
    arguments.layout.num_dims = 1;
    arguments.temperature = temperature.data();
    arguments.top_p = top_p.data();
    arguments.labels = labels.data();
    arguments.losses = losses.data();
    arguments.gradients = gradients.data();
    arguments.counted = counted.get();
    arguments.status = status.data();
  }
  void run() {
    cpu::AUTODECO_ISA::kernels().autodeco_loss(arguments, 0, arguments.layout.num_rows);
  }
  template <typename Element>
  std::vector<Element> gradient_of_logits(const std::vector<float>& of_losses) {
    std::vector<Element> output(arguments.layout.num_rows * arguments.layout.vocab);
    AutodecoLossGradientArguments backward;
    backward.logits = arguments.logits;
    backward.dtype = arguments.dtype;
    backward.layout = arguments.layout;
    backward.temperature = temperature.data();
    backward.top_p = top_p.data();
    backward.labels = labels.data();
    backward.counted = counted.get();
    backward.loss_gradients = of_losses.data();
    backward.options = arguments.options;
    backward.gradient = output.data();
    cpu::AUTODECO_ISA::kernels().autodeco_loss_gradient(backward, 0, arguments.layout.num_rows);
    return output;
  }
};

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
      row[i] = std::bit_cast<float>(static_cast<uint32_t>(half[i]) << 16);
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
    expect(is_near(batch.losses[1], exact.losses[1], 2e-5, 1e-30), "soft top-p loss: " + what);
    expect(is_near(batch.gradients[1], exact.gradients[1], 1e-4, 1e-4 * exact.scales[1] + 1e-30),
           "its gradient by T: " + what);
    expect(is_near(batch.gradients[2], exact.gradients[2], 1e-4, 2e-7 * exact.scales[2] + 1e-30),
           "its gradient by P: " + what);
    if (narrow) continue;
    for (int loss = 0; loss < 2; ++loss) {
      const std::vector<float> got =
          batch.gradient_of_logits<float>({loss == 0 ? 1.0f : 0.0f, loss == 1 ? 1.0f : 0.0f});
      double scale = 0.0;
      double sum = 0.0;
      for (int i = 0; i < vocab; ++i) {
        scale = std::max(scale, std::fabs(exact.of_logits[loss][i]));
        sum += got[i];
      }
      bool right = std::fabs(sum) <= 1e-5 * scale * std::sqrt(vocab) + 1e-30;
      for (int i = 0; i < vocab; ++i) {
        right &= is_near(got[i], exact.of_logits[loss][i], 1e-3, 2e-4 * scale + 1e-30);
      }
      expect(right, "gradient of the logits, loss " + std::to_string(loss) + ": " + what);
    }
  }
  expect(compared > 200, "most rows are compared");
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

void faults_are_named_and_stay_in_their_row() {
  constexpr int kVocab = 70;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> logits(9 * kVocab, 0.5f);
  logits[1 * kVocab + 69] = nan;
  logits[2 * kVocab + 3] = infinity;
  std::fill(logits.begin() + 3 * kVocab, logits.begin() + 4 * kVocab, -infinity);
  logits[8 * kVocab + 1] = -infinity;
  Batch batch(logits.data(), DType::kFloat32, 9, kVocab);
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
  const std::vector<float> of_logits =
      batch.gradient_of_logits<float>(std::vector<float>(18, 1.0f));
  for (int row = 0; row < 9; ++row) {
    const std::string what = "row " + std::to_string(row);
    const bool valid = wanted[row] == RowStatus::kValid;
    expect(batch.status[row] == wanted[row], "status of " + what);
    for (int i = 0; i < 2; ++i) {
      expect(std::isnan(batch.losses[9 * i + row]) == !valid && batch.counted[9 * i + row],
             "loss of " + what);
    }
    for (int i = 0; i < kVocab; ++i) {
      expect(std::isnan(of_logits[row * kVocab + i]) == !valid, "gradient of " + what);
    }
  }
  expect(batch.losses[8] == 0.0f && batch.losses[17] == 0.0f, "a label that is masked out");
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
#if defined(__x86_64__)
  const bool runs =
      std::string_view(AUTODECO_ISA_NAME) == "scalar" ||
      (std::string_view(AUTODECO_ISA_NAME) == "avx2"
           ? __builtin_cpu_supports("avx2")
           : __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
  if (!runs) return kSkipped;
#endif
  functions_are_as_accurate_as_they_say();
  groups_are_their_tokens();
  losses_agree_with_a_sort();
  rows_that_do_not_count_are_not_read();
  faults_are_named_and_stay_in_their_row();
  easy_tokens_are_dropped();
  a_row_is_the_same_alone_and_in_a_batch();
  std::printf("%s\n", failures == 0 ? "losses: all passed" : "losses: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
