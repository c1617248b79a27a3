// Rows, parameters and labels that are hard for the training losses, and a judge of the results that
// allows what python_tests/oracle.py allows.
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
    row[i] = i == 0                     ? 0.0f
             : i >= 512 && i < 5 * 512 ? equal
             : i % 17 == 0              ? -3.0f
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
constexpr int kNumLossFamilies = static_cast<int>(std::size(kLossFamilies));

// Errors as shares of what is allowed, the largest of many rows.
struct LossShares {
  static constexpr int kResults = 6;
  double worst[kResults] = {};  // both losses, dT of both, dP, dL/dlogits

  void take(const LossShares& other) {
    for (int i = 0; i < kResults; ++i) worst[i] = std::max(worst[i], other.worst[i]);
  }
};

// Of a row whose results are right for any P within `slack`: float32 masses are known to that, and
// a result between two that are right is too.
inline LossShares shares_of_row(const std::vector<float>& row, double temperature, float top_p,
                                int label, const LossOptions& options, const float (&got)[5],
                                double slack) {
  const Exact exact = exact_losses(row, temperature, top_p, label, options);
  const double clamped =
      std::max(temperature, static_cast<double>(options.top_p_temperature_clamp));
  std::vector<Exact> all = {exact};
  if (slack > 0.0 && top_p > 0.0f && top_p < 1.0f) {
    std::vector<double> moves = {-slack, slack};
    if (exact.margin <= slack) {
      const Oracle oracle(row, clamped);
      double total = 0.0;
      double mass = 0.0;
      for (const double weight : oracle.weight) total += weight;
      for (const int i : oracle.order) {
        const double p = oracle.weight[i] / total;
        const double jump = mass + (options.exclusive ? 0.0 : p) - static_cast<double>(top_p);
        if (std::fabs(jump) <= slack && p > slack / 2 && moves.size() < 40) {
          moves.insert(moves.end(), {jump - 1e-15, jump + 1e-15});
        }
        mass += p;
      }
    }
    for (const double move : moves) {
      all.push_back(exact_losses(row, temperature, std::max(top_p + move, 0.0), label, options));
    }
  }
  const double relative[5] = {1e-5, 1e-5, 1e-4, 1e-4, 1e-4};
  const bool is_head = exact.gradients[2] >= 0.0;
  const double first = std::max(temperature, static_cast<double>(options.temperature_clamp));
  const double weight = exact.weight;
  LossShares shares;
  for (int i = 0; i < 5; ++i) {
    const auto value = [i](const Exact& one) {
      return i < 2 ? one.losses[i] : one.gradients[i - 2];
    };
    const auto scale = [&](const Exact& one) {
      switch (i) {
        case 0:
          return 0.0;
        case 1:
          return 1e-5 * weight * options.probability_eps;
        case 4:
          return is_head ? 2e-7 * one.scales[2] : 0.0;
        default:
          return 1e-5 * one.scales[i - 2];
      }
    };
    double low = value(exact), high = low, size = std::fabs(low), absolute = scale(exact);
    for (const Exact& one : all) {
      low = std::min(low, value(one));
      high = std::max(high, value(one));
      size = std::max(size, std::fabs(value(one)));
      absolute = std::max(absolute, scale(one));
    }
    const double unit = i == 2 ? first : i == 3 ? clamped : 1.0;
    const double allowed = (relative[i] + 0x1p-23) * size + absolute +
                           1e-25 / std::min(unit, 1.0) + 0x1p-149;
    const double error = std::max({low - got[i], got[i] - high, 0.0});
    shares.worst[i] = std::isnan(got[i]) ? std::numeric_limits<double>::infinity()
                                         : error / allowed;
  }
  return shares;
}

}  // namespace autodeco::tests
