#include "autodeco/distribution_stats.h"

#include "../cpu/isa.h"
#include "../cuda/distribution_stats.h"
#include "device.h"

namespace autodeco::ops {
namespace {

constexpr const char* kOp = "distribution_stats";

Tensor distribution_stats(const Tensor& logits, const std::optional<Tensor>& temperature,
                          double temperature_value) {
  DistributionStatsArguments arguments;
  arguments.layout = row_layout(kOp, "logits", logits);
  require_countable_vocab(kOp, arguments.layout);
  arguments.dtype = logits_dtype(kOp, logits);
  const int64_t num_rows = arguments.layout.num_rows;
  arguments.logits = logits.const_data_ptr();
  arguments.temperature = row_parameter(kOp, "temperature", temperature,
                                        to_float32(temperature_value), logits, num_rows);
  std::vector<int64_t> shape = row_shape(logits);
  shape.push_back(kNumStats);
  const Tensor output = allocate(logits, shape, ScalarType::Float);
  arguments.output = output.mutable_data_ptr<float>();
  RowStatuses status(logits, num_rows);
  arguments.status = status.data();

  run_rows<&cuda::launch_distribution_stats>(kOp, logits, arguments,
                                             cpu::active_kernels().distribution_stats);
  FilterParameters filters;
  filters.temperature = arguments.temperature;
  // On CUDA looking would stall the device: the statistics of invalid rows are NaN there.
  if (!is_on_cuda(logits)) status.require_valid(kOp, filters);
  return output;
}

}  // namespace
}  // namespace autodeco::ops

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CPU, library) {
  library.impl("distribution_stats", TORCH_BOX(&autodeco::ops::distribution_stats));
}

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CUDA, library) {
  library.impl("distribution_stats", TORCH_BOX(&autodeco::ops::distribution_stats));
}
