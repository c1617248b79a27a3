// Arguments of the fused sampler, shared by every device. No torch, no Python.
#pragma once

#include <cstdint>

#include "autodeco/dtype.h"
#include "autodeco/filters.h"
#include "autodeco/row_layout.h"
#include "autodeco/row_status.h"
#include "autodeco/team_scratch.h"

namespace autodeco {

struct SampleArguments {
  const void* logits = nullptr;
  DType dtype = DType::kFloat32;
  RowLayout layout;
  TeamScratch team;
  FilterParameters filters;

  RowParameter<int64_t> seed;
  RowParameter<int64_t> offset;
  // A scalar seed with a scalar offset gives row r the offset `offset + r`.
  bool add_row_to_offset = false;
  int64_t num_samples = 1;

  int64_t* tokens = nullptr;    // [rows, num_samples]; -1 in invalid rows
  RowStatus* status = nullptr;  // [rows]

  // Null unless the caller asked for them.
  float* logprobs = nullptr;       // [rows, num_samples], under the filtered distribution
  float* raw_logprobs = nullptr;   // [rows, num_samples], under softmax at temperature 1
  int64_t* kept = nullptr;         // [rows]
  float* log_kept_mass = nullptr;  // [rows]
  bool* valid = nullptr;           // [rows]
};

}  // namespace autodeco
