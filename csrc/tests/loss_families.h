// Rows, parameters and labels that are hard for the training losses, and a judge of the results
// that allows what python_tests/oracle.py allows.
#pragma once

#include "loss_oracle.h"

namespace autodeco::tests {

struct LossFamily {
  const char* name;
  std::vector<float> (*make)(int vocab, std::mt19937_64& random);
};

template <RowKind kKind>
std::vector<float> make_kind(int vocab, std::mt19937_64& random) {
  return make_row(kKind, vocab, random);
}

inline std::vector<float> make_spread(int vocab, std::mt19937_64& random, float deviation) {
  std::normal_distribution<float> normal;
  std::vector<float> row(static_cast<size_t>(vocab));
  for (float& logit : row) logit = deviation * normal(random);
  return row;
}

// A few tokens far above many that are too light to be told apart.
inline std::vector<float> make_dust(int vocab, std::mt19937_64& random) {
  std::vector<float> row = make_spread(vocab, random, 0.5f);
  const float height = 8.0f + static_cast<float>(random() % 16);
  for (int i = 0; i < 3; ++i) row[random() % row.size()] = height - 0.3f * static_cast<float>(i);
  return row;
}

// Most of the mass at the largest logit, so that almost nothing is left beside it.
inline std::vector<float> make_equal_largest(int vocab, std::mt19937_64& random) {
  std::vector<float> row = make_spread(vocab, random, 2.0f);
  for (float& logit : row) logit = random() % 3 == 0 ? 20.0f : logit;
  return row;
}

// Equal weights side by side, whose float32 sums are all rounded to the same side.
inline std::vector<float> make_biased_sums(int vocab, std::mt19937_64& random) {
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  std::vector<float> row(static_cast<size_t>(vocab));
  const float equal = -uniform(random);
  for (int i = 0; i < vocab; ++i) {
    row[i] = i == 0                    ? 0.0f
             : i >= 512 && i < 5 * 512 ? equal
             : i % 17 == 0             ? -3.0f
                                       : -20.0f + uniform(random);
  }
  return row;
}

// Ties of all sizes.
inline std::vector<float> make_few_values(int vocab, std::mt19937_64& random) {
  const std::vector<float> values = make_spread(1 + static_cast<int>(random() % 6), random, 1.0f);
  std::vector<float> row(static_cast<size_t>(vocab));
  for (float& logit : row) logit = values[random() % values.size()];
  return row;
}

inline std::vector<float> make_nearly_flat(int vocab, std::mt19937_64& random) {
  return make_spread(vocab, random, 1e-3f);
}
inline std::vector<float> make_normal(int vocab, std::mt19937_64& random) {
  return make_spread(vocab, random, 1.0f);
}
inline std::vector<float> make_wide(int vocab, std::mt19937_64& random) {
  return make_spread(vocab, random, 8.0f);
}

constexpr LossFamily kLossFamilies[] = {
    {"peaked", &make_kind<RowKind::kPeaked>},
    {"normal, 1", &make_normal},
    {"normal, 3", &make_kind<RowKind::kGaussian>},
    {"normal, 8", &make_wide},
    {"nearly flat", &make_nearly_flat},
    {"uniform", &make_kind<RowKind::kUniform>},
    {"rounded", &make_kind<RowKind::kRounded>},
    {"few values", &make_few_values},
    {"all equal", &make_kind<RowKind::kAllEqual>},
    {"equal largest", &make_equal_largest},
    {"-inf in 3 of 4", &make_kind<RowKind::kMasked>},
    {"float neighbours", &make_kind<RowKind::kClose>},
    {"huge", &make_kind<RowKind::kHuge>},
    {"ascending", &make_kind<RowKind::kAscending>},
    {"confident", &make_kind<RowKind::kConfident>},
    {"dust", &make_dust},
    {"equal sums", &make_biased_sums},
    {"half far below", &make_kind<RowKind::kHalf>},
};

// C of a token.
inline double mass_at(const std::vector<float>& row, double temperature, int token,
                      const LossOptions& options) {
  const Oracle oracle(row, temperature);
  double total = 0.0;
  double mass = 0.0;
  for (const double weight : oracle.weight) total += weight;
  for (const int i : oracle.order) {
    if (i == token && options.exclusive) break;
    mass += oracle.weight[i];
    if (i == token) break;
  }
  return std::min(mass / total, 1.0);
}

// Errors as shares of what is allowed, the largest of many rows.
struct LossShares {
  static constexpr int kOfLogits = 5;
  static constexpr int kResults = 6;
  double worst[kResults] = {};  // both losses, dT of both, dP, dL/dlogits

  void take(const LossShares& other) {
    for (int i = 0; i < kResults; ++i) worst[i] = std::max(worst[i], other.worst[i]);
  }
};

// Judges the losses of a row and their gradients with respect to T and P, as
// python_tests/loss_oracle.py does.
class RowJudge {
 public:
  RowJudge(const std::vector<float>& row, double temperature, float top_p, int label,
           const LossOptions& options)
      : row_(row),
        temperature_(temperature),
        top_p_(top_p),
        label_(label),
        options_(options),
        exact_(at(0.0)) {}

  // Whether no rounding in double moves a token across the cut.
  bool is_clear() const {
    return exact_.margin >= std::max(1e-5 * (1.0 - static_cast<double>(top_p_)), 3e-14);
  }

  // A result is right if it is for any P within `slack`, or lies between two that are.
  LossShares shares(const float (&got)[5], double slack) const {
    std::vector<Exact> right = {exact_};
    if (top_p_ > 0.0f && top_p_ < 1.0f) {
      for (const double move : moves(slack)) right.push_back(at(move));
    }
    const double first = std::max(temperature_, static_cast<double>(options_.temperature_clamp));
    const double second =
        std::max(temperature_, static_cast<double>(options_.top_p_temperature_clamp));
    constexpr double kRelative[5] = {1e-5, 1e-5, 1e-4, 1e-4, 1e-4};
    const double units[5] = {1.0, 1.0, first, second, 1.0};
    LossShares shares;
    for (int i = 0; i < 5; ++i) {
      double low = value(exact_, i);
      double high = low;
      double absolute = 0.0;
      for (const Exact& one : right) {
        low = std::min(low, value(one, i));
        high = std::max(high, value(one, i));
        absolute = std::max(absolute, floor_of(one, i));
      }
      const double size = std::max(std::fabs(low), std::fabs(high));
      // What is smaller than 1e-25 nobody trains on.
      const double allowed =
          (kRelative[i] + 0x1p-23) * size + absolute + 1e-25 / std::min(units[i], 1.0) + 0x1p-149;
      const double result = got[i];
      shares.worst[i] = std::isnan(result) ? std::numeric_limits<double>::infinity()
                                           : std::max({low - result, result - high, 0.0}) / allowed;
    }
    return shares;
  }

 private:
  Exact at(double move) const {
    return exact_losses(row_, temperature_, std::max(static_cast<double>(top_p_) + move, 0.0),
                        label_, options_);
  }

  // Both ends of the slack, and both sides of every C between them, where a result jumps.
  std::vector<double> moves(double slack) const {
    std::vector<double> moves;
    if (slack == 0.0) return moves;
    moves = {-slack, slack};
    if (exact_.margin > slack) return moves;
    const Oracle oracle(
        row_, std::max(temperature_, static_cast<double>(options_.top_p_temperature_clamp)));
    double total = 0.0;
    double mass = 0.0;
    for (const double weight : oracle.weight) total += weight;
    for (const int i : oracle.order) {
      const double p = oracle.weight[i] / total;
      const double jump = mass + (options_.exclusive ? 0.0 : p) - static_cast<double>(top_p_);
      if (std::fabs(jump) <= slack && p > slack / 2) {
        moves.insert(moves.end(), {jump - 1e-15, jump + 1e-15});
      }
      mass += p;
    }
    return moves;
  }

  static double value(const Exact& one, int result) {
    return result < 2 ? one.losses[result] : one.gradients[result - 2];
  }

  // What a result may be off by where its terms cancel: TOLERANCES of python_tests/oracle.py.
  double floor_of(const Exact& one, int result) const {
    if (result == 0) return 0.0;
    if (result == 1) return 1e-5 * exact_.weight * options_.probability_eps;
    if (result < 4) return 1e-5 * one.scales[result - 2];
    return exact_.gradients[2] >= 0.0 ? 2e-7 * one.scales[2] : 0.0;
  }

  const std::vector<float>& row_;
  double temperature_;
  float top_p_;
  int label_;
  LossOptions options_;
  Exact exact_;
};

}  // namespace autodeco::tests
