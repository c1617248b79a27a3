// Rows and a float64 oracle for tests of the emulated CUDA kernels. Shares no code with them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "expect.h"

namespace autodeco::tests {

enum class RowKind {
  kPeaked,
  kGaussian,
  kUniform,
  kRounded,
  kAllEqual,
  kTwoValues,
  kMasked,
  kClose,  // float32 neighbours: every radix digit is needed
  kHuge,
  kTiny,
  kAscending,
  kConfident,   // 5 tokens far above the rest
  kNeighbours,  // ten equal tokens side by side far above the rest, as digits may be
  kHalf,        // flat in half of the columns, far below in the others, by turns
  kNumKinds,
};

inline std::vector<float> make_row(RowKind kind, int vocab, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  std::vector<float> row(static_cast<size_t>(vocab));
  const float infinity = std::numeric_limits<float>::infinity();
  for (int i = 0; i < vocab; ++i) {
    float& logit = row[i];
    const float noise = normal(random);
    switch (kind) {
      case RowKind::kPeaked:
        logit = 2.0f * noise + (random() % 500 == 0 ? 10.0f : 0.0f);
        break;
      case RowKind::kGaussian:
        logit = 3.0f * noise;
        break;
      case RowKind::kUniform:
        logit = uniform(random);
        break;
      case RowKind::kRounded:
        logit = std::round(2.0f * noise);
        break;
      case RowKind::kAllEqual:
        logit = -1.25f;
        break;
      case RowKind::kTwoValues:
        logit = random() % 3 == 0 ? 1.0f : -0.5f;
        break;
      case RowKind::kMasked:
        logit = random() % 4 == 0 ? noise : -infinity;
        break;
      case RowKind::kClose:
        logit = std::bit_cast<float>(0x3f800000u + static_cast<uint32_t>(random() % 3000));
        break;
      case RowKind::kHuge:
        logit = 3e38f * (2.0f * uniform(random) - 1.0f);
        break;
      case RowKind::kTiny:
        logit = 1e-39f * noise;
        break;
      case RowKind::kHalf:
        logit = noise - (i % 256 < 128 ? 0.0f : 40.0f);
        break;
      case RowKind::kConfident:
        logit = 2.5f * noise;
        break;
      case RowKind::kNeighbours:
        logit = 1.5f * noise + (i / 10 == vocab / 20 ? 25.0f : 0.0f);
        break;
      default:
        logit = 20.0f * static_cast<float>(i) / static_cast<float>(vocab);
        break;
    }
  }
  if (kind == RowKind::kConfident) {
    for (int i = 0; i < 5; ++i) row[random() % row.size()] = 22.0f + 0.5f * static_cast<float>(i);
  }
  if (kind == RowKind::kMasked) row[random() % row.size()] = 1.0f;
  return row;
}

struct Filters {
  float temperature = 1.0f;
  float top_p = 1.0f;
  int64_t top_k = 0;
  float min_p = 0.0f;
};

// The distribution of one row from a full stable sort in double.
struct Oracle {
  std::vector<int> order;
  std::vector<double> weight;  // by column, relative to the largest
  int num_finite = 0;

  Oracle(const std::vector<float>& row, double temperature) {
    order.resize(row.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    const double max = row[order[0]];
    for (const float logit : row) {
      const double z = (static_cast<double>(logit) - max) / temperature;
      weight.push_back(std::isinf(logit) ? 0.0 : std::exp(z));
      num_finite += !std::isinf(logit);
    }
  }

  // Whether a kept set of this length is right by the rule of semantics.md, section 1.8.
  bool length_is_right(const Filters& filters, int64_t kept) const {
    constexpr double kSlack = 2e-6;
    if (kept < 1 || kept > num_finite) return false;
    if (filters.temperature == 0.0f || filters.top_p <= 0.0f || filters.min_p > 1.0f) {
      return kept == 1;
    }
    const int64_t limit =
        filters.top_k > 0 ? std::min<int64_t>(filters.top_k, num_finite) : num_finite;
    std::vector<double> cumulative(static_cast<size_t>(limit) + 1);
    for (int64_t i = 0; i < limit; ++i) cumulative[i + 1] = cumulative[i] + weight[order[i]];
    const double total = cumulative[limit];
    // Length range that top_k and top_p allow, then min_p may cut it.
    int64_t shortest = limit;
    int64_t longest = limit;
    if (filters.top_p < 1.0f) {
      shortest = 1;
      while (shortest < limit && cumulative[shortest] / total < filters.top_p - kSlack) ++shortest;
      longest = shortest;
      while (longest < limit && cumulative[longest] / total < filters.top_p + kSlack) ++longest;
    }
    if (filters.min_p > 0.0f) {
      int64_t surely = 0;
      int64_t perhaps = 0;
      for (int64_t i = 0; i < limit; ++i) {
        surely += weight[order[i]] >= filters.min_p * (1.0 + kSlack);
        perhaps += weight[order[i]] >= filters.min_p * (1.0 - kSlack);
      }
      shortest = std::min(shortest, std::max<int64_t>(surely, 1));
      longest = std::min(longest, std::max<int64_t>(perhaps, 1));
    }
    return shortest <= kept && kept <= longest;
  }

  // The token for u; `near` says whether u is within rounding of one of its boundaries.
  int token(int64_t kept, double u, bool& near) const {
    std::vector<char> is_kept(weight.size());
    double mass = 0.0;
    for (int64_t i = 0; i < kept; ++i) {
      is_kept[order[i]] = 1;
      mass += weight[order[i]];
    }
    double running = 0.0;
    int last = -1;
    near = false;
    for (size_t i = 0; i < weight.size(); ++i) {
      if (is_kept[i] == 0 || weight[i] == 0.0) continue;
      last = static_cast<int>(i);
      const double before = running;
      running += weight[i];
      if (running > u * mass) {
        near = running - u * mass < 2e-6 * mass || u * mass - before < 2e-6 * mass;
        return last;
      }
    }
    near = true;
    return last;
  }
};

// Largest q, entropy, variance and sum of the five largest of q = softmax(l / (T + 1e-8)).
inline std::vector<double> statistics_of(const std::vector<float>& row, double temperature) {
  const Oracle oracle(row, temperature + 1e-8);
  double total = 0.0;
  for (const double weight : oracle.weight) total += weight;
  const double mean = 1.0 / static_cast<double>(row.size());
  double entropy = 0.0;
  double squares = 0.0;
  for (const double weight : oracle.weight) {
    const double q = weight / total;
    entropy -= q * std::log(q + 1e-8);
    squares += (q - mean) * (q - mean);
  }
  double largest = 0.0;
  for (size_t i = 0; i < row.size() && i < 5; ++i) largest += oracle.weight[oracle.order[i]];
  const double variance = row.size() > 1 ? squares / static_cast<double>(row.size() - 1) : 0.0;
  return {1.0 / total, entropy, variance, largest / total};
}

}  // namespace autodeco::tests
