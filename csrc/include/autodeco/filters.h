// Temperature and filter parameters of one op call (docs/semantics.md, section 1).
#pragma once

#include <cstdint>

#include "autodeco/row_parameter.h"

namespace autodeco {

struct FilterParameters {
  RowParameter<float> temperature;    // 0 is greedy
  RowParameter<float> top_p;          // >= 1 is off, <= 0 keeps the first token
  RowParameter<int64_t> top_k;        // 0 is off
  RowParameter<float> min_p;          // <= 0 is off, > 1 keeps the first token
  RowParameter<int64_t> valid_vocab;  // columns at or beyond it do not exist
};

}  // namespace autodeco
