// The training losses of plain tensors, reduced, and the step of backward: two calls where torch
// would run an op each for the losses, every reduction and every product. After a batch of logits
// nothing of torch is left in the caches, and each op then costs more than it computes. What is
// unusual is declined, as in direct_sample.cpp.
#include <vector>

#include "../ops/autodeco_loss.h"
#include "direct.h"
#include "plain_tensor.h"

namespace autodeco::python {
namespace {

enum Reduction : long { kMean, kSum, kNone };  // as in _direct.py

enum Argument {
  kLogits,
  kTemperature,
  kTopP,
  kLabels,
  kDropUniform,
  kEasyTokenDrop,
  kIgnoreIndex,
  kMegatron,
  kExclusive,
  kSteepness,
  kTemperatureClamp,
  kTopPTemperatureClamp,
  kMassEps,
  kProbabilityEps,
  kReduction,
  kLoss,
  kTemperatureLoss,
  kTopPLoss,
  kGradients,
  kNumArguments
};

float* new_floats(PyObject* object) {
  DLTensor tensor;
  return read_new_tensor(object, tensor) ? static_cast<float*>(tensor.data) : nullptr;
}

bool read_arguments(PyObject* const* objects, AutodecoLossArguments& arguments) {
  Logits logits;
  if (!read_logits(objects[kLogits], logits)) return false;
  arguments.logits = logits.data;
  arguments.dtype = logits.dtype;
  arguments.layout = logits.layout;
  arguments.temperature = read_one_per_row<float>(objects[kTemperature], logits.tensor);
  arguments.top_p = read_one_per_row<float>(objects[kTopP], logits.tensor);
  arguments.labels = read_one_per_row<int64_t>(objects[kLabels], logits.tensor);
  if (arguments.temperature == nullptr || arguments.top_p == nullptr ||
      arguments.labels == nullptr) {
    return false;
  }
  if (objects[kDropUniform] != Py_None) {
    arguments.drop_uniform = read_one_per_row<float>(objects[kDropUniform], logits.tensor);
    if (arguments.drop_uniform == nullptr) return false;
  }
  const auto number = [&](int argument) { return PyFloat_AsDouble(objects[argument]); };
  arguments.easy_token_drop = static_cast<float>(number(kEasyTokenDrop));
  arguments.ignore_index = PyLong_AsLongLong(objects[kIgnoreIndex]);
  arguments.options =
      ops::loss_options(objects[kMegatron] == Py_True, objects[kExclusive] == Py_True,
                        number(kSteepness), number(kTemperatureClamp),
                        number(kTopPTemperatureClamp), number(kMassEps), number(kProbabilityEps));
  arguments.gradients = new_floats(objects[kGradients]);
  return arguments.gradients != nullptr;
}

// The mean over the rows that count, at least one, or the sum. The gradients become those of it.
float reduced(const AutodecoLossArguments& arguments, int part, Reduction reduction) {
  const int64_t num_rows = arguments.layout.num_rows;
  double sum = 0.0;
  int64_t num_counted = 0;
  for (int64_t row = part * num_rows; row < (part + 1) * num_rows; ++row) {
    sum += static_cast<double>(arguments.losses[row]);
    num_counted += arguments.counted[row] ? 1 : 0;
  }
  if (reduction == kSum || num_counted < 2) return static_cast<float>(sum);
  const float divisor = static_cast<float>(num_counted);
  const int64_t begin = part == 0 ? 0 : num_rows;
  const int64_t end = part == 0 ? num_rows : 3 * num_rows;
  for (int64_t i = begin; i < end; ++i) arguments.gradients[i] /= divisor;
  return static_cast<float>(sum / static_cast<double>(num_counted));
}

PyObject* losses_directly(PyObject*, PyObject* const* objects, Py_ssize_t count) {
  AutodecoLossArguments arguments;
  if (!can_read_tensors() || count != kNumArguments || !read_arguments(objects, arguments)) {
    Py_RETURN_FALSE;
  }
  float* const results[3] = {new_floats(objects[kLoss]), new_floats(objects[kTemperatureLoss]),
                             new_floats(objects[kTopPLoss])};
  const Reduction reduction = static_cast<Reduction>(PyLong_AsLong(objects[kReduction]));
  if (PyErr_Occurred() != nullptr) return nullptr;
  for (const float* result : results) {
    if (result == nullptr) Py_RETURN_FALSE;
  }
  const int64_t num_rows = arguments.layout.num_rows;
  std::vector<float> losses(static_cast<size_t>(2 * num_rows));
  std::vector<uint8_t> counted(losses.size());
  std::vector<RowStatus> status(static_cast<size_t>(num_rows));
  arguments.losses = losses.data();
  static_assert(sizeof(bool) == 1);
  arguments.counted = reinterpret_cast<bool*>(counted.data());
  arguments.status = status.data();
  Py_BEGIN_ALLOW_THREADS;
  ops::run_autodeco_loss(arguments);
  Py_END_ALLOW_THREADS;
  for (const RowStatus row : status) {
    if (row != RowStatus::kValid) Py_RETURN_FALSE;
  }
  const int64_t num_results = reduction == kNone ? num_rows : 1;
  if (reduction == kNone) {
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int part = 0; part < 2; ++part) {
        results[1 + part][row] = arguments.losses[part * num_rows + row];
      }
    }
  } else {
    for (int part = 0; part < 2; ++part) {
      results[1 + part][0] = reduced(arguments, part, reduction);
    }
  }
  for (int64_t i = 0; i < num_results; ++i) results[0][i] = results[1][i] + results[2][i];
  Py_RETURN_TRUE;
}

// A derivative for each row, or one for all of them; 0 where the object is None.
struct Derivative {
  const float* values = nullptr;
  int64_t stride = 0;

  float operator[](int64_t row) const { return values == nullptr ? 0.0f : values[row * stride]; }
};

bool read_derivative(PyObject* object, const DLTensor& gradients, Derivative& derivative) {
  if (object == Py_None) return true;
  DLTensor tensor;
  if (!read_tensor(object, tensor)) return false;
  derivative.values = static_cast<const float*>(data_of(tensor));
  if (is_repeated(tensor, kFloat32)) return true;
  derivative.stride = 1;
  return is_dense(tensor, kFloat32, gradients.shape + 1, gradients.ndim - 1);
}

enum GradientArgument {
  kSavedGradients,
  kOfLoss,
  kOfTemperatureLoss,
  kOfTopPLoss,
  kTemperatureGradient,
  kTopPGradient,
  kNumGradientArguments
};

PyObject* loss_gradients_directly(PyObject*, PyObject* const* objects, Py_ssize_t count) {
  if (!can_read_tensors() || count != kNumGradientArguments) Py_RETURN_FALSE;
  DLTensor gradients;
  Derivative of_loss;
  Derivative of_parts[2];
  if (!read_tensor(objects[kSavedGradients], gradients) ||
      !read_derivative(objects[kOfLoss], gradients, of_loss) ||
      !read_derivative(objects[kOfTemperatureLoss], gradients, of_parts[0]) ||
      !read_derivative(objects[kOfTopPLoss], gradients, of_parts[1])) {
    Py_RETURN_FALSE;
  }
  float* const of_temperature = new_floats(objects[kTemperatureGradient]);
  float* const of_top_p = new_floats(objects[kTopPGradient]);
  if (of_temperature == nullptr || of_top_p == nullptr) Py_RETURN_FALSE;
  int64_t num_rows = 1;
  for (int dim = 1; dim < gradients.ndim; ++dim) num_rows *= gradients.shape[dim];
  const float* const saved = static_cast<const float*>(data_of(gradients));
  for (int64_t row = 0; row < num_rows; ++row) {
    const float first = of_loss[row] + of_parts[0][row];
    const float second = of_loss[row] + of_parts[1][row];
    of_temperature[row] = saved[row] * first + saved[num_rows + row] * second;
    of_top_p[row] = saved[2 * num_rows + row] * second;
  }
  Py_RETURN_TRUE;
}

PyMethodDef methods[] = {
    {"losses_directly", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&losses_directly)),
     METH_FASTCALL,
     "Writes losses and gradients to the last four arguments; False if the op must do it."},
    {"loss_gradients_directly",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&loss_gradients_directly)),
     METH_FASTCALL,
     "Writes the gradients of T and P to the last two arguments; False if torch must do it."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool add_direct_loss(PyObject* module) { return PyModule_AddFunctions(module, methods) == 0; }

}  // namespace autodeco::python
