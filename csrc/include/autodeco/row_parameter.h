// A sampling parameter: one value for the whole batch, or one per row.
#pragma once

#include <cstdint>

namespace autodeco {

template <typename T>
struct RowParameter {
  const T* per_row = nullptr;  // [rows], or null when `value` holds for every row
  T value = T();
};

// The parameter of one row. `static`: see order.h.
template <typename T>
static constexpr T value_at(const RowParameter<T>& parameter, int64_t row) {
  return parameter.per_row != nullptr ? parameter.per_row[row] : parameter.value;
}

}  // namespace autodeco
