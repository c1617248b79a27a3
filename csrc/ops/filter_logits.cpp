#include "autodeco/filter_logits.h"

#include "../cpu/isa.h"
#include "checks.h"

namespace autodeco::ops {
namespace {

constexpr const char* kOp = "filter_logits";

void filter_logits_out(const Tensor& logits, const std::optional<Tensor>& temperature,
                       double temperature_value, const std::optional<Tensor>& top_p,
                       double top_p_value, const std::optional<Tensor>& top_k, int64_t top_k_value,
                       const std::optional<Tensor>& min_p, double min_p_value,
                       const std::optional<Tensor>& valid_vocab, int64_t valid_vocab_value,
                       double filter_value, Tensor out) {
  FilterLogitsArguments arguments;
  arguments.layout = row_layout(kOp, "logits", logits);
  arguments.dtype = logits_dtype(kOp, logits);
  require_countable_vocab(kOp, arguments.layout);
  if (out.scalar_type() != ScalarType::Float) fail(kOp, "out must be float32, got another dtype");
  if (shape_of(out) != shape_of(logits)) {
    fail(kOp, "out must have shape ", shape_text(shape_of(logits)), ", got ",
         shape_text(shape_of(out)));
  }
  if (out.device() != logits.device()) fail(kOp, "out must be on the device of logits");
  arguments.output_layout = row_layout(kOp, "out", out);
  const int64_t num_rows = arguments.layout.num_rows;
  arguments.logits = logits.const_data_ptr();
  arguments.output = out.mutable_data_ptr<float>();
  arguments.filter_value = static_cast<float>(filter_value);
  arguments.filters =
      filter_parameters(kOp, logits, num_rows, temperature, temperature_value, top_p, top_p_value,
                        top_k, top_k_value, min_p, min_p_value, valid_vocab, valid_vocab_value);
  std::vector<RowStatus> status(static_cast<size_t>(num_rows));
  arguments.status = status.data();

  const cpu::KernelTable& kernels = cpu::active_kernels();
  for_rows(arguments.layout,
           [&](int64_t begin, int64_t end) { kernels.filter_logits(arguments, begin, end); });
  require_valid_rows(kOp, status, arguments.filters);
}

}  // namespace
}  // namespace autodeco::ops

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CPU, library) {
  library.impl("filter_logits_out", TORCH_BOX(&autodeco::ops::filter_logits_out));
}
