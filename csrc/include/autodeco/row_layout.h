// Where the rows of a logits tensor lie in memory. Rows need not be evenly spaced: a slice such as
// `logits[:, ::2]` has two row strides. The vocabulary stride is always 1.
#pragma once

#include <cstdint>

namespace autodeco {

// Leading dimensions that are left after merging those that can be walked with one stride.
constexpr int kMaxRowDims = 4;

struct RowLayout {
  int64_t num_rows = 0;
  int64_t vocab = 0;
  int num_dims = 0;
  int64_t sizes[kMaxRowDims] = {};
  int64_t strides[kMaxRowDims] = {};

  // Offset of a row's first element, in elements.
  int64_t offset(int64_t row) const {
    int64_t result = 0;
    for (int dim = num_dims - 1; dim > 0; --dim) {
      result += (row % sizes[dim]) * strides[dim];
      row /= sizes[dim];
    }
    return num_dims > 0 ? result + row * strides[0] : 0;
  }
};

}  // namespace autodeco
