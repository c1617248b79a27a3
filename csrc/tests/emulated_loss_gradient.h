// Runs the kernel of the losses' gradient with respect to the logits on the emulated device.
#pragma once

#include "autodeco_loss_gradient.cuh"
#include "emulated_loss.h"
#include "loss_oracle.h"

namespace autodeco::tests {

template <typename Element>
struct LogitsGradient {
  std::vector<Element> values;  // [rows, vocab]
  uint64_t bytes_loaded = 0;

  bool operator==(const LogitsGradient& other) const {
    return values.size() == other.values.size() &&
           std::memcmp(values.data(), other.values.data(), values.size() * sizeof(Element)) == 0;
  }
};

// What flows into the losses of every row, and whether they count: [2, rows].
struct Upstream {
  std::vector<float> gradients;
  std::vector<char> counted;

  Upstream(int rows, float first, float second)
      : gradients(2 * static_cast<size_t>(rows), first), counted(2 * static_cast<size_t>(rows), 1) {
    std::fill(gradients.begin() + rows, gradients.end(), second);
  }
};

template <typename Element>
LogitsGradient<Element> logits_gradient(const Batch<Element>& batch, const LossInputs& inputs,
                                        const Upstream& upstream) {
  LogitsGradient<Element> result;
  result.values.assign(static_cast<size_t>(batch.num_rows) * static_cast<size_t>(batch.vocab),
                       from_float<Element>(-7.0f));
  auto arguments = arguments_of<AutodecoLossGradientArguments>(batch, inputs);
  arguments.counted = reinterpret_cast<const bool*>(upstream.counted.data());
  arguments.loss_gradients = upstream.gradients.data();
  arguments.gradient = result.values.data();
  const gpu::Launch where =
      launch_of(batch.num_rows, cuda::loss_gradient_shared_memory_bytes(batch.vocab));
  const uint64_t before = emulation::device.bytes_loaded;
  gpu::launch(&cuda::autodeco_loss_gradient_kernel<Element>, where, arguments);
  result.bytes_loaded = emulation::device.bytes_loaded - before;
  return result;
}

// The gradient of one row in float64. Equal tokens that are light may have, each, the mean of what
// their places give.
struct LogitsGradientOracle {
  std::vector<double> wanted;
  std::vector<double> averaged;
  std::vector<double> terms;  // without their signs, of the second loss
  double scale = 0.0;

  LogitsGradientOracle(const std::vector<float>& row, int64_t label, float temperature,
                       double top_p, const LossOptions& options, double first, double second) {
    const Exact exact = exact_losses(row, temperature, top_p, static_cast<int>(label), options);
    wanted.resize(row.size());
    double largest[2] = {};
    for (size_t i = 0; i < row.size(); ++i) {
      for (int loss = 0; loss < 2; ++loss) {
        largest[loss] = std::max(largest[loss], std::fabs(exact.of_logits[loss][i]));
      }
      wanted[i] = first * exact.of_logits[0][i] + second * exact.of_logits[1][i];
    }
    scale = std::fabs(first) * largest[0] + std::fabs(second) * largest[1];
    averaged = wanted;
    terms = exact.logits_scale;
    for (double& term : terms) term *= std::fabs(second);
    double others = 0.0;
    for (const double term : terms) others += term;
    terms[label] = others;
    average_light_ties(row, label, std::max(temperature, options.top_p_temperature_clamp),
                       second * exact.edge);
  }

 private:
  void average_light_ties(const std::vector<float>& row, int64_t label, double temperature,
                          double edge) {
    const Oracle oracle(row, temperature);
    double total = 0.0;
    for (const double weight : oracle.weight) total += weight;
    const size_t n = row.size();
    for (size_t begin = 0, end; begin < n; begin = end) {
      const float logit = row[oracle.order[begin]];
      const double p = oracle.weight[oracle.order[begin]] / total;
      double sum = 0.0;
      int count = 0;
      // Which of them come before the label is known, and the label has what makes the sum zero.
      const auto own = [&](int column) {
        return logit == row[label] && column < label ? edge * p : 0.0;
      };
      for (end = begin; end < n && row[oracle.order[end]] == logit; ++end) {
        const int column = oracle.order[end];
        if (column == label) continue;
        sum += wanted[column] - own(column);
        ++count;
      }
      for (size_t i = begin; i < end && p < 1.02 * cuda::kHeavy; ++i) {
        const int column = oracle.order[i];
        if (column != label) averaged[column] = sum / count + own(column);
      }
    }
  }
};

// The largest error of the row, in units of what is allowed: 1e-3 of the element or 2e-4 of the
// largest, as for the CPU, 1e-5 of its terms, and the rounding to the dtype.
template <typename Element>
double worst_miss(const LogitsGradientOracle& oracle, const Element* got) {
  const double rounding = std::is_same_v<Element, float>           ? 0.0
                          : std::is_same_v<Element, cuda::Float16> ? 0x1p-11
                                                                   : 0x1p-8;
  const double subnormal = std::is_same_v<Element, cuda::Float16> ? 0x1p-24 : 1e-37;
  double worst = 0.0;
  for (size_t i = 0; i < oracle.wanted.size(); ++i) {
    const double value = cuda::to_float(got[i]);
    const double size = std::max(std::fabs(oracle.wanted[i]), std::fabs(oracle.averaged[i]));
    const double allowed = std::max(1e-3 * size, 2e-4 * oracle.scale) + 1e-5 * oracle.terms[i] +
                           rounding * size + subnormal;
    const double miss =
        std::min(std::fabs(value - oracle.wanted[i]), std::fabs(value - oracle.averaged[i])) /
        allowed;
    worst = miss > worst || miss != miss ? miss : worst;
  }
  return worst;
}

// The same for row `index` of a batch, with the cut where it fits best: it may be off by rounding.
template <typename Element>
double miss_of_row(const std::vector<float>& row, const LossInputs& inputs, int index,
                   const Upstream& upstream, const Element* got) {
  constexpr double kCutSlack = 2e-7;
  const size_t rows = inputs.labels.size();
  const float top_p = inputs.top_p[index];
  double miss = std::numeric_limits<double>::infinity();
  for (const double shift : {0.0, -kCutSlack, kCutSlack}) {
    if (shift != 0.0 && (top_p == 1.0f || miss <= 1.0)) break;
    const LogitsGradientOracle oracle(row, inputs.labels[index], inputs.temperature[index],
                                      std::max(top_p + shift, 0.0), inputs.options,
                                      upstream.gradients[index], upstream.gradients[rows + index]);
    miss = std::min(miss, worst_miss(oracle, got));
  }
  return miss;
}

}  // namespace autodeco::tests
