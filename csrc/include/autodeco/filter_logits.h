// Arguments of filter_logits, shared by every device. No torch, no Python.
#pragma once

#include <cstdint>

#include "autodeco/dtype.h"
#include "autodeco/filters.h"
#include "autodeco/row_layout.h"
#include "autodeco/row_status.h"
#include "autodeco/team_scratch.h"

namespace autodeco {

struct FilterLogitsArguments {
  const void* logits = nullptr;
  DType dtype = DType::kFloat32;
  RowLayout layout;
  TeamScratch team;
  FilterParameters filters;
  float filter_value = 0.0f;

  float* output = nullptr;
  RowLayout output_layout;
  RowStatus* status = nullptr;  // [rows]
};

}  // namespace autodeco
