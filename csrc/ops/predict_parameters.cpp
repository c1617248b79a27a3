#include "autodeco/predict_parameters.h"

#include <tuple>

#include "../cpu/isa.h"
#include "../cuda/predict_parameters.h"
#include "device.h"

namespace autodeco::ops {
namespace {

constexpr const char* kOp = "predict_parameters";

// A float32 tensor on the device of the logits, which the other tensors of its head come with.
const Tensor& float_tensor(const std::string& name, const std::optional<Tensor>& tensor,
                           const Tensor& logits) {
  if (!tensor.has_value()) fail(kOp, name, " must be given with the product of its head, got None");
  if (tensor->scalar_type() != ScalarType::Float) {
    fail(kOp, name, " must be float32, got ", torch::headeronly::toString(tensor->scalar_type()));
  }
  if (tensor->device() != logits.device()) {
    fail(kOp, name, " must be on the device of logits, got another");
  }
  return *tensor;
}

const float* contiguous_values(const std::string& name, const std::optional<Tensor>& given,
                               const std::vector<int64_t>& shape, const Tensor& logits) {
  const Tensor& tensor = float_tensor(name, given, logits);
  if (shape_of(tensor) != shape || !tensor.is_contiguous()) {
    fail(kOp, name, " must be contiguous with shape ", shape_text(shape), ", got shape ",
         shape_text(shape_of(tensor)));
  }
  return tensor.const_data_ptr<float>();
}

// Where there is no product there is no head.
HeadLayers head_layers(const std::string& head, const Tensor& logits,
                       const std::optional<Tensor>& product,
                       const std::optional<Tensor>& first_bias,
                       const std::optional<Tensor>& second_weight,
                       const std::optional<Tensor>& second_bias) {
  HeadLayers layers;
  if (!product.has_value()) return layers;
  if (product->dim() == 0) fail(kOp, head, "_product must have at least one dimension, got 0");
  layers.width = product->size(product->dim() - 1);
  std::vector<int64_t> product_shape = row_shape(logits);
  product_shape.push_back(layers.width);
  const int64_t width = layers.width;
  layers.product = contiguous_values(head + "_product", product, product_shape, logits);
  layers.first_bias = contiguous_values(head + "_first_bias", first_bias, {width}, logits);
  layers.second_weight =
      contiguous_values(head + "_second_weight", second_weight, {1, width}, logits);
  layers.second_bias = contiguous_values(head + "_second_bias", second_bias, {1}, logits);
  return layers;
}

// The columns of a head's first weights that meet its features, read where they are.
void set_feature_weight(const Tensor& logits, const std::optional<Tensor>& given,
                        PredictParametersArguments& arguments) {
  const Tensor& weight = float_tensor("top_p_feature_weight", given, logits);
  const int64_t width = arguments.top_p_head.width;
  const std::vector<int64_t> shape = shape_of(weight);
  if (shape != std::vector<int64_t>{width, 1} &&
      shape != std::vector<int64_t>{width, 1 + kNumStats}) {
    fail(kOp, "top_p_feature_weight must have shape ", shape_text({width, 1}), " or ",
         shape_text({width, 1 + kNumStats}), ", got ", shape_text(shape));
  }
  if (shape[1] > 1 && weight.stride(1) != 1) {
    fail(kOp, "top_p_feature_weight must have a column stride of 1, got ", weight.stride(1));
  }
  arguments.feature_weight = weight.const_data_ptr<float>();
  arguments.feature_weight_stride = weight.stride(0);
  arguments.uses_statistics = shape[1] > 1;
}

std::tuple<Tensor, Tensor> predict_parameters(
    const Tensor& logits, const std::optional<Tensor>& temperature_product,
    const std::optional<Tensor>& temperature_first_bias,
    const std::optional<Tensor>& temperature_second_weight,
    const std::optional<Tensor>& temperature_second_bias,
    const std::optional<Tensor>& top_p_product, const std::optional<Tensor>& top_p_feature_weight,
    const std::optional<Tensor>& top_p_first_bias, const std::optional<Tensor>& top_p_second_weight,
    const std::optional<Tensor>& top_p_second_bias, bool check) {
  PredictParametersArguments arguments;
  arguments.layout = row_layout(kOp, "logits", logits);
  arguments.dtype = logits_dtype(kOp, logits);
  arguments.logits = logits.const_data_ptr();
  arguments.temperature_head =
      head_layers("temperature", logits, temperature_product, temperature_first_bias,
                  temperature_second_weight, temperature_second_bias);
  arguments.top_p_head = head_layers("top_p", logits, top_p_product, top_p_first_bias,
                                     top_p_second_weight, top_p_second_bias);
  if (top_p_product.has_value()) set_feature_weight(logits, top_p_feature_weight, arguments);
  if (arguments.uses_statistics) require_countable_vocab(kOp, arguments.layout);

  const std::vector<int64_t> shape = row_shape(logits);
  const Tensor temperature = allocate(logits, shape, ScalarType::Float);
  const Tensor top_p = allocate(logits, shape, ScalarType::Float);
  arguments.temperature = temperature.mutable_data_ptr<float>();
  arguments.top_p = top_p.mutable_data_ptr<float>();
  RowStatuses status(logits, arguments.layout.num_rows);
  arguments.status = status.data();

  run_rows<&cuda::launch_predict_parameters>(kOp, logits, arguments,
                                             cpu::active_kernels().predict_parameters);
  if (check) {
    FilterParameters filters;
    filters.temperature.per_row = arguments.temperature;
    status.require_valid(kOp, filters);
  }
  return {temperature, top_p};
}

}  // namespace
}  // namespace autodeco::ops

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CPU, library) {
  library.impl("predict_parameters", TORCH_BOX(&autodeco::ops::predict_parameters));
}

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CUDA, library) {
  library.impl("predict_parameters", TORCH_BOX(&autodeco::ops::predict_parameters));
}
