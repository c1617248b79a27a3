// Rows made for the very places that the CPU sampler looks at in them.
#pragma once

#include "counted_rows.h"

// After what is counted.
#include "prefix_search.h"

namespace autodeco::tests {

// Whether the sampler looks at this column in any of its attempts, where the maximum is 4 and in
// column 0.
inline bool is_looked_at(int column) {
  RowSummary summary;
  summary.max = 4.0f;
  summary.argmax = 0;
  const int number = column / kBlock;
  const int padded = std::min(kBlock, (kVocab - number * kBlock + kStep - 1) / kStep * kStep);
  for (int attempt = 0; attempt < 3; ++attempt) {
    const int first = Sample::first_column(number, padded, Sample::shift_of(summary, attempt));
    if (column % kBlock / Sample::kColumns == first / Sample::kColumns) return true;
  }
  return false;
}

// Rows made for the very places that the sampler looks at in them: every guess is wrong.
inline std::vector<Kind> misleading_rows() {
  const auto misleading = [](const std::function<float()>& seen,
                             const std::function<float()>& unseen) {
    return make([&](int column) {
      if (column == 0) return 4.0f;
      return std::min(3.9f, is_looked_at(column) ? seen() : unseen());
    });
  };
  return {
      {"its sample has all mass", misleading(normal, [] { return -9.0f; })},
      {"its sample has none", misleading([] { return -1e30f; }, normal)},
      {"its sample has none, one float apart",
       misleading([] { return -1e30f; }, [] { return 1 + std::floor(uniform() * 40) * 0x1p-23f; })},
      {"its sample spread, rest tied",
       misleading([] { return -8 * uniform(); }, [] { return -3.0f; })},
  };
}

}  // namespace autodeco::tests
