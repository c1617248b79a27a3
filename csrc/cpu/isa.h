// Which instruction set the CPU kernels use: chosen once at load time, forced by AUTODECO_CPU_ISA.
#pragma once

#include <cstdint>

namespace autodeco {
struct SampleArguments;
struct FilterLogitsArguments;
struct KeptIndicesArguments;
struct DistributionStatsArguments;
struct PredictParametersArguments;
struct AutodecoLossArguments;
struct AutodecoLossGradientArguments;
struct FloorArguments;
}  // namespace autodeco

namespace autodeco::cpu {

enum class Isa { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

// The kernels compiled for one instruction set. Each works on the rows [begin, end).
struct KernelTable {
  const char* isa;  // its name, compiled in with the kernels
  void (*sample)(const SampleArguments& arguments, int64_t begin, int64_t end);
  void (*filter_logits)(const FilterLogitsArguments& arguments, int64_t begin, int64_t end);
  void (*count_kept)(const KeptIndicesArguments& arguments, int64_t begin, int64_t end);
  void (*write_kept)(const KeptIndicesArguments& arguments, int64_t begin, int64_t end);
  void (*distribution_stats)(const DistributionStatsArguments& arguments, int64_t begin,
                             int64_t end);
  void (*predict_parameters)(const PredictParametersArguments& arguments, int64_t begin,
                             int64_t end);
  void (*autodeco_loss)(const AutodecoLossArguments& arguments, int64_t begin, int64_t end);
  void (*autodeco_loss_gradient)(const AutodecoLossGradientArguments& arguments, int64_t begin,
                                 int64_t end);
  void (*floor)(const FloorArguments& arguments, int64_t begin, int64_t end);
};

const char* isa_name(Isa isa);

// Compiled into this build, and runnable on this processor and operating system.
bool isa_is_built(Isa isa);
bool isa_is_supported(Isa isa);

// False, and no change, if the instruction set is not built or not supported.
bool set_active_isa(Isa isa);

// What every op runs. Its name is that of the instruction set in use.
const KernelTable& active_kernels();

}  // namespace autodeco::cpu
