// Whether this processor runs the instruction set that a native test is compiled for.
#pragma once

#include <string_view>

namespace autodeco::tests {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE in CMakeLists.txt

inline bool processor_has_isa() {
#if defined(__x86_64__)
  constexpr std::string_view kName = AUTODECO_ISA_NAME;
  if (kName == "avx2") return __builtin_cpu_supports("avx2");
  if (kName == "avx512") {
    return __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return true;
}

}  // namespace autodeco::tests
