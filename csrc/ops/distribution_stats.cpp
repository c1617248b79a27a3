#include "autodeco/distribution_stats.h"

#include "../cpu/isa.h"
#include "checks.h"

namespace autodeco::ops {
namespace {

constexpr const char* kOp = "distribution_stats";

Tensor distribution_stats(const Tensor& logits, const std::optional<Tensor>& temperature,
                          double temperature_value) {
  DistributionStatsArguments arguments;
  arguments.layout = row_layout(kOp, "logits", logits);
  arguments.dtype = logits_dtype(kOp, logits);
  const int64_t num_rows = arguments.layout.num_rows;
  arguments.logits = logits.const_data_ptr();
  arguments.temperature = row_parameter(kOp, "temperature", temperature,
                                        to_float32(temperature_value), logits, num_rows);
  std::vector<int64_t> shape = row_shape(logits);
  shape.push_back(kNumStats);
  Tensor output = torch::stable::empty({shape.data(), shape.size()}, ScalarType::Float,
                                       std::nullopt, logits.device());
  arguments.output = output.mutable_data_ptr<float>();
  std::vector<RowStatus> status(static_cast<size_t>(num_rows));
  arguments.status = status.data();

  const cpu::KernelTable& kernels = cpu::active_kernels();
  for_rows(arguments.layout,
           [&](int64_t begin, int64_t end) { kernels.distribution_stats(arguments, begin, end); });
  FilterParameters filters;
  filters.temperature = arguments.temperature;
  require_valid_rows(kOp, status, filters);
  return output;
}

}  // namespace
}  // namespace autodeco::ops

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CPU, library) {
  library.impl("distribution_stats", TORCH_BOX(&autodeco::ops::distribution_stats));
}
