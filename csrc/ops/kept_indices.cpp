#include "autodeco/kept_indices.h"

#include <array>
#include <tuple>

#include "../cpu/isa.h"
#include "../cuda/kept_indices.h"
#include "device.h"

namespace autodeco::ops {
namespace {

constexpr const char* kOp = "kept_indices";

// Running sums in place, by torch's own scan.
void accumulate(const Tensor& values) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack = {from(values), from(int64_t{0}), from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::cumsum_", "", stack.data(), TORCH_ABI_VERSION));
  // The result is `values` once more; this handle to it is released here.
  torch::stable::detail::to<Tensor>(stack[0]);
}

// On CUDA this waits for what fills the tensor.
int64_t last_value(const Tensor& values) {
  const int64_t size = values.numel();
  if (!is_on_cuda(values)) return values.const_data_ptr<int64_t>()[size - 1];
  constexpr int64_t kOne = 1;
  Tensor on_host = torch::stable::empty({&kOne, 1}, ScalarType::Long);
  Tensor last = values;
  torch::stable::copy_(on_host, torch::stable::narrow(last, 0, size - 1, 1));
  return *on_host.const_data_ptr<int64_t>();
}

std::tuple<Tensor, Tensor> kept_indices(
    const Tensor& logits, const std::optional<Tensor>& temperature, double temperature_value,
    const std::optional<Tensor>& top_p, double top_p_value, const std::optional<Tensor>& top_k,
    int64_t top_k_value, const std::optional<Tensor>& min_p, double min_p_value,
    const std::optional<Tensor>& valid_vocab, int64_t valid_vocab_value,
    std::optional<int64_t> capacity, bool check) {
  KeptIndicesArguments arguments;
  arguments.layout = row_layout(kOp, "logits", logits);
  arguments.dtype = logits_dtype(kOp, logits);
  require_countable_vocab(kOp, arguments.layout);
  if (capacity.has_value() && *capacity < 0) {
    fail(kOp, "capacity must be >= 0, got ", *capacity);
  }
  const int64_t num_rows = arguments.layout.num_rows;
  arguments.logits = logits.const_data_ptr();
  arguments.filters =
      filter_parameters(kOp, logits, num_rows, temperature, temperature_value, top_p, top_p_value,
                        top_k, top_k_value, min_p, min_p_value, valid_vocab, valid_vocab_value);

  const Tensor last = allocate(logits, {num_rows}, ScalarType::Long);
  static_assert(sizeof(LastKept) == sizeof(int64_t));
  arguments.last = reinterpret_cast<LastKept*>(last.mutable_data_ptr<int64_t>());
  Tensor offsets = allocate(logits, {num_rows + 1}, ScalarType::Long);
  torch::stable::zero_(offsets);
  arguments.offsets = offsets.mutable_data_ptr<int64_t>();
  RowStatuses status(logits, num_rows);
  arguments.status = status.data();
  run_rows<&cuda::launch_count_kept>(kOp, logits, arguments, cpu::active_kernels().count_kept);
  if (check) status.require_valid(kOp, arguments.filters);
  accumulate(offsets);

  arguments.capacity = capacity.has_value() ? *capacity : last_value(offsets);
  const Tensor ids = allocate(logits, {arguments.capacity}, ScalarType::Int);
  if (capacity.has_value()) torch::stable::fill_(ids, -1.0);
  arguments.ids = ids.mutable_data_ptr<int32_t>();
  run_rows<&cuda::launch_write_kept>(kOp, logits, arguments, cpu::active_kernels().write_kept);
  return {offsets, ids};
}

}  // namespace
}  // namespace autodeco::ops

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CPU, library) {
  library.impl("kept_indices", TORCH_BOX(&autodeco::ops::kept_indices));
}

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CUDA, library) {
  library.impl("kept_indices", TORCH_BOX(&autodeco::ops::kept_indices));
}
