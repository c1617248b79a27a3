// The training losses and all their gradients by a sort in float64.
#pragma once

#include <bit>

#include "autodeco/autodeco_loss.h"
#include "emulated_rows.h"

namespace autodeco::tests {

inline bool is_near(double got, double wanted, double relative, double absolute) {
  return std::fabs(got - wanted) <= relative * std::fabs(wanted) + absolute;
}

struct Exact {
  double losses[2];
  double gradients[3];
  double scales[3];  // what the terms of a gradient would be without their signs
  double margin;     // distance of P from the nearest C
  double weight;     // of the label at T = 1
  std::vector<double> of_logits[2];
  std::vector<double> logits_scale;  // what the terms of of_logits[1] would be without their signs
  double edge;  // of_logits[1] of tokens that count in C of the label have this times p more
};

inline Exact exact_losses(const std::vector<float>& row, double temperature, double top_p,
                          int label, const LossOptions& options) {
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
  exact.weight = unit_weight;

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
  const double r = options.probability_eps > 0.0 ? q / (q + options.probability_eps) : 1.0;
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
  exact.logits_scale.resize(vocab);
  double later = 0.0;  // U
  exact.edge = one ? unit_weight / tp * a * r : 0.0;
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
    exact.logits_scale[i] =
        unit_weight * oracle.weight[i] / tp *
        (r / total * (1.0 + a * later + a * leaning) + r + (one ? 2.0 * a * r : 0.0));
    if (i == label) upto_label = true;
    if (i != label) sum += exact.of_logits[1][i];
  }
  exact.of_logits[1][label] = -sum;
  return exact;
}

}  // namespace autodeco::tests
