#include "device.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "../cuda/runtime.h"
#include "../cuda/team.h"

namespace autodeco::ops {
namespace {

// The current stream of torch's CUDA half. Its stable ABI has it only from 2.13, and linking the
// CUDA half would keep this module from loading on a CPU torch: so it is found in the library that
// a CUDA torch has loaded.
void* current_stream(const char* op, int32_t device_index) {
  using Function = int32_t (*)(int32_t, void**);
  static const auto function = []() -> Function {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) return nullptr;
    return reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  if (function == nullptr || function(device_index, &stream) != 0) {
    fail(op, "torch must have a CUDA half that names its current stream, got none");
  }
  return stream;
}

// Of a row that is not valid, for the message.
template <typename T>
RowParameter<T> value_on_host(const char* op, RowParameter<T> parameter, int64_t row) {
  if (parameter.per_row == nullptr) return parameter;
  RowParameter<T> result;
  const int error = cuda::read_value(parameter.per_row + row, &result.value, sizeof(T));
  if (error != 0) {
    fail(op, "the values of an invalid row could not be read (", cuda::error_text(error),
         ") in row ", row);
  }
  return result;
}

// Why torch's last call failed, as it says from 2.13 on; the headers of 2.10 do not declare that.
std::string reason_of_torch() {
  using Function = const char* (*)();
  static const auto function =
      reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  return function == nullptr ? "" : std::string(": ") + function();
}

}  // namespace

void run_on_cuda(const char* op, const Tensor& logits, int (*launch)(const void*, void*),
                 const void* arguments) {
  const int32_t device_index = logits.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device_index);
  int error = cuda::use_device(device_index);
  if (error == 0) error = launch(arguments, current_stream(op, device_index));
  if (error != 0) fail(op, "the CUDA kernel could not be started: ", cuda::error_text(error));
}

Tensor allocate(const Tensor& logits, const std::vector<int64_t>& shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t dim = shape.size(); dim-- > 0; stride *= std::max<int64_t>(shape[dim], 1)) {
    strides[dim] = stride;
  }
  int32_t device_type = 0;
  STD_TORCH_CHECK(aoti_torch_get_device_type(logits.get(), &device_type) == 0);
  const int32_t torch_dtype =
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                               torch_dtype, device_type, logits.get_device_index(), &handle) != 0) {
    throw std::runtime_error("autodeco_ext: could not allocate a tensor of shape " +
                             shape_text(shape) + reason_of_torch());
  }
  return Tensor(handle);
}

TeamMemory::TeamMemory(const Tensor& logits, const RowLayout& layout) {
  const cuda::TeamNeeds needs = cuda::team_needs(layout);
  if (needs.bytes == 0) return;
  memory_ = allocate(logits, {needs.bytes}, ScalarType::Byte);
  scratch_ = {static_cast<char*>(memory_->mutable_data_ptr()), needs.blocks_per_row};
}

RowStatuses::RowStatuses(const Tensor& logits, int64_t num_rows) {
  if (is_on_cuda(logits)) {
    on_cuda_ = allocate(logits, {num_rows}, ScalarType::Byte);
  } else {
    on_host_.resize(static_cast<size_t>(num_rows));
  }
}

RowStatus* RowStatuses::data() {
  if (!on_cuda_.has_value()) return on_host_.data();
  return reinterpret_cast<RowStatus*>(on_cuda_->mutable_data_ptr<uint8_t>());
}

void RowStatuses::require_valid(const char* op, const FilterParameters& filters,
                                const RowParameter<int64_t>& labels) const {
  if (!on_cuda_.has_value()) {
    require_valid_rows(op, on_host_, filters, labels);
    return;
  }
  const torch::stable::accelerator::DeviceGuard guard(on_cuda_->get_device_index());
  const int64_t num_rows = on_cuda_->numel();
  Tensor on_host = torch::stable::empty({&num_rows, 1}, ScalarType::Byte);
  torch::stable::copy_(on_host, *on_cuda_);
  const uint8_t* statuses = on_host.const_data_ptr<uint8_t>();
  for (int64_t row = 0; row < num_rows; ++row) {
    const RowStatus status = static_cast<RowStatus>(statuses[row]);
    if (status == RowStatus::kValid) continue;
    FilterParameters of_row;
    of_row.temperature = value_on_host(op, filters.temperature, row);
    of_row.top_p = value_on_host(op, filters.top_p, row);
    of_row.top_k = value_on_host(op, filters.top_k, row);
    of_row.valid_vocab = value_on_host(op, filters.valid_vocab, row);
    std::vector<RowStatus> until(static_cast<size_t>(row + 1), RowStatus::kValid);
    until.back() = status;
    require_valid_rows(op, until, of_row, value_on_host(op, labels, row));
  }
}

}  // namespace autodeco::ops
