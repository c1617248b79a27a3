// Element types a row of logits may have. The values are ours: they cross no ABI.
#pragma once

#include <cstdint>

namespace autodeco {

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

}  // namespace autodeco
