// Why a row cannot be sampled. One byte per row is written by the kernels and read by csrc/ops.
#pragma once

#include <cstdint>

namespace autodeco {

enum class RowStatus : uint8_t {
  kValid = 0,
  kTemperatureInvalid,  // negative, NaN or infinite
  kTopKNegative,
  kValidVocabBelowOne,
  kTopPNaN,
  kMinPNaN,
  kLogitNaN,
  kLogitPositiveInfinity,
  kNoFiniteLogit,
};

}  // namespace autodeco
