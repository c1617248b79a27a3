// Where the rows of a logits tensor lie in memory. Rows need not be evenly spaced: a slice such as
// `logits[:, ::2]` has two row strides. The vocabulary stride is always 1.
#pragma once

#include <cstdint>

namespace autodeco {

// Leading dimensions that are left after merging those that can be walked with one stride.
constexpr int kMaxRowDims = 4;

// Sums of 2^20 masses of 44 bits fill 64 bits.
constexpr int64_t kMaxCountableVocab = int64_t{1} << 20;

struct RowLayout {
  int64_t num_rows = 0;
  int64_t vocab = 0;
  int num_dims = 0;
  int64_t sizes[kMaxRowDims] = {};
  int64_t strides[kMaxRowDims] = {};
};

// Splitting pays from some ten thousand logits a thread.
static constexpr int64_t rows_at_once(const RowLayout& layout) {
  constexpr int64_t kMinElementsPerThread = 16384;
  return kMinElementsPerThread / layout.vocab + 1;
}

// Offset of a row's first element, in elements. `static`: see order.h.
static constexpr int64_t row_offset(const RowLayout& layout, int64_t row) {
  int64_t result = 0;
  for (int dim = layout.num_dims - 1; dim > 0; --dim) {
    result += (row % layout.sizes[dim]) * layout.strides[dim];
    row /= layout.sizes[dim];
  }
  return layout.num_dims > 0 ? result + row * layout.strides[0] : 0;
}

}  // namespace autodeco
