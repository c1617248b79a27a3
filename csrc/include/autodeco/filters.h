// Temperature and filter parameters of one op call (docs/semantics.md, section 1).
#pragma once

#include <cstdint>
#include <limits>

#include "autodeco/row_parameter.h"
#include "autodeco/row_status.h"

namespace autodeco {

struct FilterParameters {
  RowParameter<float> temperature;    // 0 is greedy
  RowParameter<float> top_p;          // >= 1 is off, <= 0 keeps the first token
  RowParameter<int64_t> top_k;        // 0 is off
  RowParameter<float> min_p;          // <= 0 is off, > 1 keeps the first token
  RowParameter<int64_t> valid_vocab;  // columns at or beyond it do not exist
};

static constexpr RowStatus temperature_status(float temperature) {
  // Written so that NaN fails.
  return temperature >= 0.0f && temperature <= std::numeric_limits<float>::max()
             ? RowStatus::kValid
             : RowStatus::kTemperatureInvalid;
}

// What the parameters of a row alone say about it.
static constexpr RowStatus filter_status(const FilterParameters& filters, int64_t row) {
  const RowStatus status = temperature_status(value_at(filters.temperature, row));
  if (status != RowStatus::kValid) return status;
  if (value_at(filters.top_k, row) < 0) return RowStatus::kTopKNegative;
  if (value_at(filters.valid_vocab, row) < 1) return RowStatus::kValidVocabBelowOne;
  const float top_p = value_at(filters.top_p, row);
  if (top_p != top_p) return RowStatus::kTopPNaN;
  const float min_p = value_at(filters.min_p, row);
  if (min_p != min_p) return RowStatus::kMinPNaN;
  return RowStatus::kValid;
}

// Columns of one row that exist.
static constexpr int64_t existing_columns(int64_t vocab, int64_t valid_vocab) {
  if (valid_vocab >= vocab) return vocab;
  return valid_vocab > 0 ? valid_vocab : 0;
}

}  // namespace autodeco
