// Runs the loss kernels on the emulated device, and their float64 oracle. The oracle sorts.
#pragma once

#include "autodeco_loss.cuh"
#include "emulated_kernels.h"

namespace autodeco::tests {

struct LossResult {
  std::vector<float> losses;
  std::vector<float> gradients;
  std::vector<char> counted;
  std::vector<RowStatus> status;
  uint64_t bytes_loaded = 0;

  bool operator==(const LossResult& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    return same(losses, other.losses) && same(gradients, other.gradients) &&
           counted == other.counted && status == other.status;
  }
};

struct LossInputs {
  std::vector<float> temperature;
  std::vector<float> top_p;
  std::vector<int64_t> labels;
  std::vector<float> drop_uniform;  // empty: none
  float easy_token_drop = 0.6f;
  LossOptions options;
};

// What the kernels of the losses and of their gradient are both told.
template <typename Arguments, typename Element>
Arguments arguments_of(const Batch<Element>& batch, const LossInputs& inputs) {
  Arguments arguments;
  arguments.logits = batch.memory.data() + batch.misaligned;
  arguments.dtype = dtype_of<Element>();
  arguments.layout = batch.layout();
  arguments.temperature = inputs.temperature.data();
  arguments.top_p = inputs.top_p.data();
  arguments.labels = inputs.labels.data();
  arguments.options = inputs.options;
  return arguments;
}

// One block a row. As in emulated_kernels.h: ThreadSanitizer is slow to make fibers.
inline gpu::Launch launch_of(int num_rows, size_t shared_bytes) {
  gpu::Launch where;
  where.blocks = num_rows;
  where.threads = emulation::kDetectsRaces ? 64 : cuda::kLossThreads;
  where.shared_bytes = shared_bytes;
  return where;
}

template <typename Element>
LossResult autodeco_loss(const Batch<Element>& batch, const LossInputs& inputs) {
  const size_t rows = static_cast<size_t>(batch.num_rows);
  LossResult result;
  result.losses.assign(2 * rows, -7.0f);
  result.gradients.assign(3 * rows, -7.0f);
  result.counted.assign(2 * rows, 2);
  result.status.assign(rows, RowStatus::kNoFiniteLogit);
  auto arguments = arguments_of<AutodecoLossArguments>(batch, inputs);
  if (!inputs.drop_uniform.empty()) arguments.drop_uniform = inputs.drop_uniform.data();
  arguments.easy_token_drop = inputs.easy_token_drop;
  arguments.losses = result.losses.data();
  arguments.gradients = result.gradients.data();
  arguments.counted = reinterpret_cast<bool*>(result.counted.data());
  arguments.status = result.status.data();
  const gpu::Launch where = launch_of(batch.num_rows, cuda::loss_shared_memory_bytes(batch.vocab));
  const uint64_t before = emulation::device.bytes_loaded;
  gpu::launch(&cuda::autodeco_loss_kernel<Element>, where, arguments);
  result.bytes_loaded = emulation::device.bytes_loaded - before;
  return result;
}

// Float neighbours in two clusters: more of them in one bin than a list holds.
inline std::vector<float> make_clusters(int vocab, std::mt19937_64& random) {
  std::vector<float> row = make_row(RowKind::kClose, vocab, random);
  for (size_t i = 0; i < row.size(); i += 4) row[i] -= 1.0f;
  return row;
}

// For rows as long as a model's.
constexpr RowKind kLongKinds[] = {RowKind::kPeaked,    RowKind::kGaussian,  RowKind::kUniform,
                                  RowKind::kConfident, RowKind::kAllEqual,  RowKind::kTwoValues,
                                  RowKind::kClose,     RowKind::kNeighbours};

// The first token, one of the next, any, or one around the cut.
inline int64_t choose_label(const std::vector<float>& row, float temperature, float top_p,
                            std::mt19937_64& random) {
  const Oracle oracle(row, temperature);
  const int n = static_cast<int>(row.size());
  int rank = 0;
  switch (random() % 5) {
    case 0:
      break;
    case 1:
      rank = static_cast<int>(random() % std::min(n, 20));
      break;
    case 2:
      rank = static_cast<int>(random() % n);
      break;
    default: {  // around the cut
      double total = 0.0, running = 0.0;
      for (const double weight : oracle.weight) total += weight;
      while (rank < n - 1 && running <= top_p * total)
        running += oracle.weight[oracle.order[rank++]];
      rank += static_cast<int>(random() % 5) - 2;
    }
  }
  return oracle.order[std::clamp(rank, 0, oracle.num_finite - 1)];
}

// Rows of one kind with parameters and labels that are hard, and what to call them.
template <typename Element>
struct RandomLosses {
  Batch<Element> batch;
  LossInputs inputs;
  std::string what;
};

template <typename Element>
RandomLosses<Element> random_losses(int trial, std::mt19937_64& random) {
  const float temperatures[] = {1.0f, 0.3f, 2.0f, 0.05f, 0.7f, 0.005f, 1e-4f, 1e30f};
  const float top_ps[] = {0.9f, 0.5f, 0.99f, 0.0f, 1.0f, 0.999f, 0.01f, 0.7f, 0.999999f};
  const double steepnesses[] = {3.0, 1e-6, 300.0, 1e4};
  const int vocab = 1 + static_cast<int>(random() % (trial % 4 == 0 ? 30000 : 3000));
  const int rows = 1 + static_cast<int>(random() % 3);
  const RowKind kind = static_cast<RowKind>(random() % static_cast<int>(RowKind::kNumKinds));
  std::vector<std::vector<float>> logits;
  for (int row = 0; row < rows; ++row) {
    logits.push_back(trial % 8 == 4 ? make_clusters(vocab, random) : make_row(kind, vocab, random));
  }
  const Batch<Element> batch(logits, static_cast<int>(random() % 4));
  LossInputs inputs;
  inputs.options.megatron = random() % 3 == 0;
  inputs.options.exclusive = random() % 2 == 0;
  if (random() % 3 == 0) inputs.options.steepness = steepnesses[random() % 4];
  if (random() % 3 == 0) {
    inputs.options.temperature_clamp = inputs.options.top_p_temperature_clamp = 0.0f;
  }
  for (int row = 0; row < rows; ++row) {
    const float temperature =
        kind == RowKind::kClose && random() % 2 == 0 ? 1e-4f : temperatures[random() % 8];
    inputs.temperature.push_back(temperature);
    inputs.top_p.push_back(top_ps[random() % 9]);
    inputs.labels.push_back(
        choose_label(batch.rows[row], temperature, inputs.top_p.back(), random));
  }
  const std::string what =
      "kind " + std::to_string(static_cast<int>(kind)) + ", vocab " + std::to_string(vocab) +
      ", megatron " + std::to_string(inputs.options.megatron) + ", exclusive " +
      std::to_string(inputs.options.exclusive) + ", steepness " +
      std::to_string(inputs.options.steepness) + ", trial " + std::to_string(trial);
  return {batch, inputs, what};
}

// The last row alone, at another alignment.
template <typename Element>
RandomLosses<Element> last_alone(const RandomLosses<Element>& all) {
  LossInputs one = all.inputs;
  one.temperature = {all.inputs.temperature.back()};
  one.top_p = {all.inputs.top_p.back()};
  one.labels = {all.inputs.labels.back()};
  return {Batch<Element>({all.batch.rows.back()}, (all.batch.misaligned + 1) % 4), one, all.what};
}

// The losses and gradients of one row in float64, from a stable sort.
struct LossOracle {
  std::vector<int> order;
  std::vector<double> logits;  // in rank order
  int label_rank = 0;

  LossOracle(const std::vector<float>& row, int64_t label) {
    order.resize(row.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    for (const int column : order) logits.push_back(row[column]);
    while (order[label_rank] != label) ++label_rank;
  }

  struct Softmax {
    std::vector<double> p;
    std::vector<double> lambda;
    double label_complement = 0.0;  // of the label's p, as a sum
  };

  Softmax softmax(double temperature) const {
    Softmax result;
    double total = 0.0;
    for (const double logit : logits) {
      result.p.push_back(std::exp((logit - logits[0]) / temperature));
      total += result.p.back();
    }
    double mean = 0.0;
    for (size_t i = 0; i < logits.size(); ++i) {
      result.p[i] /= total;
      if (result.p[i] > 0.0) mean += result.p[i] * (logits[0] - logits[i]) / temperature;
    }
    for (size_t i = 0; i < logits.size(); ++i) {
      result.lambda.push_back(result.p[i] > 0.0 ? mean - (logits[0] - logits[i]) / temperature
                                                : 0.0);
      if (static_cast<int>(i) != label_rank) result.label_complement += result.p[i];
    }
    return result;
  }

  struct Values {
    double losses[2] = {};
    double gradients[3] = {};
    double terms = 0.0;  // of gradients[1], by absolute value
  };

  Values at(float temperature, double top_p, const LossOptions& options) const {
    Values values;
    const double weight = softmax(1.0).p[label_rank];
    const float first_clamp = options.temperature_clamp;
    const double first = std::max(temperature, first_clamp);
    const Softmax base = softmax(first);
    const double label_p = base.p[label_rank];
    const double first_weight = options.megatron ? label_p : weight;
    if (first_weight > 0.0) {
      const double entropy =
          base.label_complement < 0.5 ? -std::log1p(-base.label_complement) : -std::log(label_p);
      // From the logits where p underflows.
      double total = 0.0;
      for (const double logit : logits) total += std::exp((logit - logits[0]) / first);
      const double distance = (logits[0] - logits[label_rank]) / first;
      double mean = 0.0;
      for (size_t i = 0; i < logits.size(); ++i) {
        if (base.p[i] > 0.0) mean += base.p[i] * (logits[0] - logits[i]) / first;
      }
      values.losses[0] = first_weight * (label_p > 1e-200 ? entropy : std::log(total) + distance);
      if (temperature >= first_clamp) {
        values.gradients[0] = first_weight * (mean - distance) / first;
      }
    }
    if (weight == 0.0) return values;

    const double a = options.steepness;
    const float clamp = options.top_p_temperature_clamp;
    const double second = std::max(temperature, clamp);
    const Softmax soft = softmax(second);
    const size_t n = logits.size();
    std::vector<double> mass(n), slope(n);
    double running = 0.0, running_slope = 0.0;
    for (size_t i = 0; i < n; ++i) {
      if (options.exclusive) mass[i] = running, slope[i] = running_slope;
      running += soft.p[i];
      running_slope += soft.p[i] * soft.lambda[i];
      if (!options.exclusive) mass[i] = running, slope[i] = running_slope;
    }
    const auto is_tail = [&](size_t i) { return top_p < 1.0 && mass[i] > top_p * (1.0 + 1e-13); };
    double head = 0.0, tail = 0.0, rest = 0.0, pulled = 0.0;
    double label_pull = 0.0, label_u = 0.0;
    const size_t label = static_cast<size_t>(label_rank);
    for (size_t i = 0; i < n; ++i) {
      const double u = is_tail(i) ? soft.p[i] * std::exp(-a * (mass[i] - top_p)) : soft.p[i];
      const double pull = soft.lambda[i] - (is_tail(i) ? a * slope[i] : 0.0);
      (is_tail(i) ? tail : head) += u;
      if (i == label) {
        label_u = u;
        const double distance = (logits[0] - logits[label]) / second;
        label_pull = pull;
        if (soft.p[i] == 0.0) {
          double mean = 0.0;
          for (size_t j = 0; j < n; ++j) {
            if (soft.p[j] > 0.0) mean += soft.p[j] * (logits[0] - logits[j]) / second;
          }
          label_pull = mean - distance - (is_tail(i) ? a * slope[i] : 0.0);
        }
      } else {
        rest += u;
        pulled += u * pull;
        values.terms += std::fabs(u * pull);
      }
    }
    const double total = head + tail + options.mass_eps;
    const double q = label_u / total;
    const double ratio = q / (q + options.probability_eps);
    const double others = rest + options.mass_eps;
    values.losses[1] = weight * (q > 0.5 ? -std::log1p(options.probability_eps - others / total)
                                         : -std::log(q + options.probability_eps));
    const double gradient =
        is_tail(label) ? -ratio * a * (head + options.mass_eps) / total : ratio * a * tail / total;
    values.gradients[2] = weight * gradient;
    if (temperature >= clamp) {
      values.gradients[1] = -weight * (ratio / second) * (-label_pull * others + pulled) / total;
      values.terms =
          weight * (ratio / second) * (std::fabs(label_pull * others) + values.terms) / total;
    } else {
      values.terms = 0.0;
    }
    return values;
  }
};

}  // namespace autodeco::tests
