#include "autodeco/autodeco_loss.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "../cpu/isa.h"
#include "../cuda/autodeco_loss.h"
#include "../cuda/autodeco_loss_gradient.h"
#include "device.h"

namespace autodeco::ops {
namespace {

constexpr const char* kOp = "autodeco_loss";
constexpr const char* kGradientOp = "autodeco_loss_logits_gradient";

// The shape of `leading` values of every row.
std::vector<int64_t> shape_per_row(int64_t leading, const Tensor& logits) {
  std::vector<int64_t> shape = row_shape(logits);
  shape.insert(shape.begin(), leading);
  return shape;
}

// A contiguous tensor of this shape and dtype on the device of the logits.
const Tensor& require_tensor(const char* op, const char* name, const Tensor& tensor,
                             ScalarType dtype, const std::vector<int64_t>& shape,
                             const Tensor& logits) {
  if (tensor.scalar_type() != dtype) {
    fail(op, name, " must be ", torch::headeronly::toString(dtype), ", got ",
         torch::headeronly::toString(tensor.scalar_type()));
  }
  if (tensor.device() != logits.device()) {
    fail(op, name, " must be on the device of logits, got another");
  }
  if (shape_of(tensor) != shape) {
    fail(op, name, " must have shape ", shape_text(shape), ", got ", shape_text(shape_of(tensor)));
  }
  if (!tensor.is_contiguous()) fail(op, name, " must be contiguous, got strides that skip");
  return tensor;
}

LossOptions loss_options(const char* op, bool megatron, bool exclusive, double steepness,
                         double temperature_clamp, double top_p_temperature_clamp, double mass_eps,
                         double probability_eps) {
  const auto require_not_negative = [&](const char* name, double value) {
    if (!(value >= 0.0) || !std::isfinite(value)) {
      fail(op, name, " must be finite and >= 0, got ", value);
    }
  };
  require_not_negative("steepness", steepness);
  require_not_negative("temperature_clamp", temperature_clamp);
  require_not_negative("top_p_temperature_clamp", top_p_temperature_clamp);
  require_not_negative("mass_eps", mass_eps);
  require_not_negative("probability_eps", probability_eps);
  LossOptions options;
  options.megatron = megatron;
  options.exclusive = exclusive;
  // The closed forms divide by it; so little decay is none.
  options.steepness = std::max(steepness, 1e-100);
  options.temperature_clamp = to_float32(temperature_clamp);
  options.top_p_temperature_clamp = to_float32(top_p_temperature_clamp);
  options.mass_eps = mass_eps;
  options.probability_eps = probability_eps;
  return options;
}

// What both ops read of a row.
template <typename Arguments>
void set_rows(const char* op, const Tensor& logits, const Tensor& temperature, const Tensor& top_p,
              const Tensor& labels, Arguments& arguments) {
  arguments.layout = row_layout(op, "logits", logits);
  arguments.dtype = logits_dtype(op, logits);
  require_countable_vocab(op, arguments.layout);
  arguments.logits = logits.const_data_ptr();
  const std::vector<int64_t> rows = row_shape(logits);
  arguments.temperature =
      require_tensor(op, "temperature", temperature, ScalarType::Float, rows, logits)
          .const_data_ptr<float>();
  arguments.top_p =
      require_tensor(op, "top_p", top_p, ScalarType::Float, rows, logits).const_data_ptr<float>();
  arguments.labels = require_tensor(op, "labels", labels, ScalarType::Long, rows, logits)
                         .const_data_ptr<int64_t>();
}

std::tuple<Tensor, Tensor, Tensor> autodeco_loss_rows(
    const Tensor& logits, const Tensor& temperature, const Tensor& top_p, const Tensor& labels,
    const std::optional<Tensor>& drop_uniform, double easy_token_drop, int64_t ignore_index,
    bool megatron, bool exclusive, double steepness, double temperature_clamp,
    double top_p_temperature_clamp, double mass_eps, double probability_eps, bool check) {
  AutodecoLossArguments arguments;
  set_rows(kOp, logits, temperature, top_p, labels, arguments);
  arguments.options = loss_options(kOp, megatron, exclusive, steepness, temperature_clamp,
                                   top_p_temperature_clamp, mass_eps, probability_eps);
  if (drop_uniform.has_value()) {
    arguments.drop_uniform = require_tensor(kOp, "drop_uniform", *drop_uniform, ScalarType::Float,
                                            row_shape(logits), logits)
                                 .const_data_ptr<float>();
  }
  arguments.easy_token_drop = to_float32(easy_token_drop);
  arguments.ignore_index = ignore_index;

  const int64_t num_rows = arguments.layout.num_rows;
  const Tensor losses = allocate(logits, shape_per_row(2, logits), ScalarType::Float);
  const Tensor gradients = allocate(logits, shape_per_row(3, logits), ScalarType::Float);
  const Tensor counted = allocate(logits, shape_per_row(2, logits), ScalarType::Bool);
  arguments.losses = losses.mutable_data_ptr<float>();
  arguments.gradients = gradients.mutable_data_ptr<float>();
  arguments.counted = counted.mutable_data_ptr<bool>();
  RowStatuses status(logits, num_rows);
  arguments.status = status.data();
  run_rows<&cuda::launch_autodeco_loss>(kOp, logits, arguments,
                                        cpu::active_kernels().autodeco_loss);
  if (check) {
    FilterParameters filters;
    filters.temperature.per_row = arguments.temperature;
    filters.top_p.per_row = arguments.top_p;
    RowParameter<int64_t> label;
    label.per_row = arguments.labels;
    status.require_valid(kOp, filters, label);
  }
  return {losses, gradients, counted};
}

Tensor autodeco_loss_logits_gradient(const Tensor& logits, const Tensor& temperature,
                                     const Tensor& top_p, const Tensor& labels,
                                     const Tensor& counted, const Tensor& loss_gradients,
                                     bool megatron, bool exclusive, double steepness,
                                     double temperature_clamp, double top_p_temperature_clamp,
                                     double mass_eps, double probability_eps) {
  AutodecoLossGradientArguments arguments;
  set_rows(kGradientOp, logits, temperature, top_p, labels, arguments);
  arguments.options = loss_options(kGradientOp, megatron, exclusive, steepness, temperature_clamp,
                                   top_p_temperature_clamp, mass_eps, probability_eps);
  const std::vector<int64_t> two_rows = shape_per_row(2, logits);
  arguments.counted =
      require_tensor(kGradientOp, "counted", counted, ScalarType::Bool, two_rows, logits)
          .const_data_ptr<bool>();
  arguments.loss_gradients = require_tensor(kGradientOp, "loss_gradients", loss_gradients,
                                            ScalarType::Float, two_rows, logits)
                                 .const_data_ptr<float>();
  const Tensor gradient = allocate(logits, shape_of(logits), logits.scalar_type());
  arguments.gradient = gradient.mutable_data_ptr();
  run_rows<&cuda::launch_autodeco_loss_gradient>(kGradientOp, logits, arguments,
                                                 cpu::active_kernels().autodeco_loss_gradient);
  return gradient;
}

}  // namespace
}  // namespace autodeco::ops

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CPU, library) {
  library.impl("autodeco_loss_rows", TORCH_BOX(&autodeco::ops::autodeco_loss_rows));
  library.impl("autodeco_loss_logits_gradient",
               TORCH_BOX(&autodeco::ops::autodeco_loss_logits_gradient));
}

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CUDA, library) {
  library.impl("autodeco_loss_rows", TORCH_BOX(&autodeco::ops::autodeco_loss_rows));
  library.impl("autodeco_loss_logits_gradient",
               TORCH_BOX(&autodeco::ops::autodeco_loss_logits_gradient));
}
