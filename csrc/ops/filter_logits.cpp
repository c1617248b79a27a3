#include "autodeco/filter_logits.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "../cpu/isa.h"
#include "../cuda/filter_logits.h"
#include "device.h"

namespace autodeco::ops {
namespace {

constexpr const char* kOp = "filter_logits";

// One past the last byte of a tensor that is not empty.
const char* end_of(const Tensor& tensor) {
  int64_t last = 0;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    last += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  const char* begin = static_cast<const char*>(tensor.const_data_ptr());
  return begin + (last + 1) * static_cast<int64_t>(tensor.element_size());
}

// Rows are written in any order while others are read: no byte of `out` may belong to two rows, or
// to a logit other than the one it replaces.
void require_writable(const Tensor& logits, const Tensor& out,
                      const FilterLogitsArguments& arguments) {
  if (out.numel() == 0) return;
  const RowLayout& rows = arguments.output_layout;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int dim = 0; dim < rows.num_dims; ++dim) {
    dims.emplace_back(rows.strides[dim], rows.sizes[dim]);
  }
  std::sort(dims.begin(), dims.end());
  // A step along one dimension must lead past all that those of smaller strides span. Rows that are
  // interleaved and yet apart are refused too.
  int64_t span = rows.vocab;
  for (const auto& [stride, size] : dims) {
    if (stride < span) {
      fail(kOp, "out must not share memory between its rows, got strides ",
           shape_text({out.strides().begin(), out.strides().end()}));
    }
    span += (size - 1) * stride;
  }
  const char* logits_begin = static_cast<const char*>(logits.const_data_ptr());
  const char* out_begin = static_cast<const char*>(out.const_data_ptr());
  if (out_begin >= end_of(logits) || logits_begin >= end_of(out)) return;
  const std::vector<int64_t> logits_strides{logits.strides().begin(), logits.strides().end()};
  const std::vector<int64_t> out_strides{out.strides().begin(), out.strides().end()};
  if (logits_begin != out_begin || logits.scalar_type() != out.scalar_type() ||
      logits_strides != out_strides) {
    fail(kOp, "out must be logits itself or lie outside its memory, got overlapping memory");
  }
}

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
  if (out.scalar_type() != ScalarType::Float) {
    fail(kOp, "out must be float32, got ", torch::headeronly::toString(out.scalar_type()));
  }
  if (shape_of(out) != shape_of(logits)) {
    fail(kOp, "out must have shape ", shape_text(shape_of(logits)), ", got ",
         shape_text(shape_of(out)));
  }
  if (out.device() != logits.device())
    fail(kOp, "out must be on the device of logits, got another");
  arguments.output_layout = row_layout(kOp, "out", out);
  require_writable(logits, out, arguments);
  const int64_t num_rows = arguments.layout.num_rows;
  arguments.logits = logits.const_data_ptr();
  arguments.output = out.mutable_data_ptr<float>();
  arguments.filter_value = to_float32(filter_value);
  arguments.filters =
      filter_parameters(kOp, logits, num_rows, temperature, temperature_value, top_p, top_p_value,
                        top_k, top_k_value, min_p, min_p_value, valid_vocab, valid_vocab_value);
  RowStatuses status(logits, num_rows);
  arguments.status = status.data();

  run_rows<&cuda::launch_filter_logits>(kOp, logits, arguments,
                                        cpu::active_kernels().filter_logits);
  // On CUDA looking would stall the device: invalid rows are all filter_value there.
  if (!is_on_cuda(logits)) status.require_valid(kOp, arguments.filters);
}

}  // namespace
}  // namespace autodeco::ops

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CPU, library) {
  library.impl("filter_logits_out", TORCH_BOX(&autodeco::ops::filter_logits_out));
}

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CUDA, library) {
  library.impl("filter_logits_out", TORCH_BOX(&autodeco::ops::filter_logits_out));
}
