// Arguments of kept_indices, shared by every device. No torch, no Python.
//
// Two kernels work on them. The first finds the kept set of every row, the second writes its
// columns; between the two the caller turns the counts into offsets.
#pragma once

#include <cstdint>

#include "autodeco/dtype.h"
#include "autodeco/filters.h"
#include "autodeco/last_kept.h"
#include "autodeco/row_layout.h"
#include "autodeco/row_status.h"
#include "autodeco/team_scratch.h"

namespace autodeco {

struct KeptIndicesArguments {
  const void* logits = nullptr;
  DType dtype = DType::kFloat32;
  RowLayout layout;
  TeamScratch team;
  FilterParameters filters;

  RowStatus* status = nullptr;  // [rows], by the first kernel
  LastKept* last = nullptr;     // [rows], by the first kernel, of rows that keep something
  // [rows + 1]. The first kernel leaves the number of kept tokens of row r in offsets[r + 1], 0 if
  // the row is invalid; the second reads where the ids of a row begin and end.
  int64_t* offsets = nullptr;

  int32_t* ids = nullptr;  // [capacity], by the second kernel
  int64_t capacity = 0;
};

// Where the ids of a row go: [begin, end), nothing beyond the capacity. Empty in an invalid row.
struct IdRange {
  int64_t begin;
  int64_t end;
};

// `static`: see order.h.
static constexpr IdRange id_range(const KeptIndicesArguments& arguments, int64_t row) {
  const int64_t end = arguments.offsets[row + 1];
  return {arguments.offsets[row], end < arguments.capacity ? end : arguments.capacity};
}

}  // namespace autodeco
