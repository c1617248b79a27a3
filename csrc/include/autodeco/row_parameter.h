// A sampling parameter: one value for the whole batch, or one per row.
#pragma once

#include <cstdint>

namespace autodeco {

template <typename T>
struct RowParameter {
  const T* per_row = nullptr;  // [rows], or null when `value` holds for every row
  T value = T();

  T at(int64_t row) const { return per_row != nullptr ? per_row[row] : value; }
};

}  // namespace autodeco
