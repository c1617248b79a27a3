// Arguments of floor, shared by every device: the least that any kernel here must do to a row. It
// is timed beside the others and is no public op. No torch, no Python.
#pragma once

#include <cstdint>

#include "autodeco/dtype.h"
#include "autodeco/row_layout.h"

namespace autodeco {

struct FloorArguments {
  const void* logits = nullptr;
  DType dtype = DType::kFloat32;
  RowLayout layout;

  // On the CPU the maximum and the sum of exp(l - maximum); on CUDA, where kernels keep sums on the
  // way, the maxima of `columns` parts of the row, read once.
  float* output = nullptr;  // [rows, columns]
  int64_t columns = 0;
};

}  // namespace autodeco
