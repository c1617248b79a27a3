// Why a row cannot be sampled, or has no loss. One byte per row is written by the kernels and read
// by csrc/ops.
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
  kTemperatureZero,    // where no clamp makes it positive
  kTopPOutsideUnit,    // of the losses; the sampler takes any number
  kLabelOutsideVocab,  // and not the one to be ignored
};

}  // namespace autodeco
