#include "isa.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace autodeco::cpu {

namespace scalar {
const KernelTable& kernels();
}
#if defined(AUTODECO_BUILD_AVX2)
namespace avx2 {
const KernelTable& kernels();
}
#endif
#if defined(AUTODECO_BUILD_AVX512)
namespace avx512 {
const KernelTable& kernels();
}
#endif

namespace {

const KernelTable* kernels_of(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return &scalar::kernels();
    case Isa::kAvx2:
#if defined(AUTODECO_BUILD_AVX2)
      return &avx2::kernels();
#else
      return nullptr;
#endif
    case Isa::kAvx512:
#if defined(AUTODECO_BUILD_AVX512)
      return &avx512::kernels();
#else
      return nullptr;
#endif
  }
  return nullptr;
}

#if defined(__x86_64__)
// Clang 14 does not know the name "f16c". The registers it needs are those of AVX2.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

Isa best_isa() {
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
    if (isa_is_built(isa) && isa_is_supported(isa)) return isa;
  }
  return Isa::kScalar;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

bool isa_is_built(Isa isa) { return kernels_of(isa) != nullptr; }

bool isa_is_supported(Isa isa) {
  // The compiler's check asks the operating system (XGETBV) as well as the processor.
  switch (isa) {
    case Isa::kScalar:
      return true;
#if defined(__x86_64__)
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             isa_is_supported(Isa::kAvx2);
#else
    default:
      return false;
#endif
  }
  return false;
}

bool set_active_isa(Isa isa) {
  if (!isa_is_built(isa) || !isa_is_supported(isa)) return false;
  active().store(isa, std::memory_order_relaxed);
  return true;
}

const KernelTable& active_kernels() {
  return *kernels_of(active().load(std::memory_order_relaxed));
}

}  // namespace autodeco::cpu
