// The dispatcher takes longer for the 17 arguments of `autodeco_ext::sample` than the kernel does
// for a small row. Here tensors are read through DLPack's C exchange functions instead, which
// torch.Tensor publishes. Anything unusual is declined, and then the registered op, which says what
// is wrong with its arguments, does the work: this file has no error sentences.
#include "direct_sample.h"

#include <ATen/dlpack.h>

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "../cpu/isa.h"
#include "autodeco/sample.h"

namespace autodeco::python {
namespace {

const DLPackExchangeAPI* exchange = nullptr;
PyTypeObject* tensor_type = nullptr;
PyObject* is_neg = nullptr;

constexpr DLDataType kFloat32{kDLFloat, 32, 1};
constexpr DLDataType kInt64{kDLInt, 64, 1};

bool same(DLDataType a, DLDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

// False for what is not a plain tensor with memory on the CPU: a subclass, a wrapper of a function
// transform, a lazily negated view.
bool read_tensor(PyObject* object, DLTensor& tensor) {
  if (Py_TYPE(object) != tensor_type) return false;
  if (exchange->dltensor_from_py_object_no_sync(object, &tensor) != 0) {
    PyErr_Clear();
    return false;
  }
  if (tensor.device.device_type != kDLCPU || tensor.data == nullptr) return false;
  PyObject* negated = PyObject_CallMethodNoArgs(object, is_neg);
  if (negated == nullptr) PyErr_Clear();
  Py_XDECREF(negated);
  return negated == Py_False;
}

const void* data_of(const DLTensor& tensor) {
  return static_cast<const char*>(tensor.data) + tensor.byte_offset;
}

int64_t stride_of(const DLTensor& tensor, int dim) {
  if (tensor.strides != nullptr) return tensor.strides[dim];
  return dim + 1 < tensor.ndim ? tensor.shape[dim + 1] : 1;  // two dimensions at most
}

std::optional<DType> dtype_of(const DLTensor& logits) {
  if (same(logits.dtype, kFloat32)) return DType::kFloat32;
  if (same(logits.dtype, {kDLBfloat, 16, 1})) return DType::kBFloat16;
  if (same(logits.dtype, {kDLFloat, 16, 1})) return DType::kFloat16;
  return std::nullopt;
}

// [vocab] or [rows, vocab], as many rows as one thread takes.
bool read_logits(PyObject* object, DLTensor& logits, SampleArguments& arguments) {
  if (!read_tensor(object, logits) || logits.ndim < 1 || logits.ndim > 2) return false;
  const std::optional<DType> dtype = dtype_of(logits);
  RowLayout& layout = arguments.layout;
  layout.vocab = logits.shape[logits.ndim - 1];
  layout.num_rows = logits.ndim == 2 ? logits.shape[0] : 1;
  if (!dtype.has_value() || layout.vocab < 1 || layout.vocab > kMaxCountableVocab ||
      layout.num_rows < 1 || (layout.vocab > 1 && stride_of(logits, logits.ndim - 1) != 1) ||
      layout.num_rows > rows_at_once(layout)) {
    return false;
  }
  if (layout.num_rows > 1) {
    layout.num_dims = 1;
    layout.sizes[0] = layout.num_rows;
    layout.strides[0] = stride_of(logits, 0);
  }
  arguments.dtype = *dtype;
  arguments.logits = data_of(logits);
  return true;
}

template <typename T>
bool read_value(PyObject* object, T lowest, T& value) {
  if constexpr (std::is_same_v<T, float>) {
    if (!PyFloat_CheckExact(object) && !PyLong_CheckExact(object)) return false;
    const double given = PyFloat_AsDouble(object);
    if (given == -1.0 && PyErr_Occurred() != nullptr) {  // an integer that no double can hold
      PyErr_Clear();
      return false;
    }
    // Also false for NaN.
    if (!(given >= static_cast<double>(lowest) &&
          given <= static_cast<double>(std::numeric_limits<float>::max()))) {
      return false;
    }
    value = static_cast<float>(given);
  } else {
    if (!PyLong_CheckExact(object)) return false;
    int overflow = 0;
    value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow != 0 || value < lowest) return false;
  }
  return true;
}

// A number, or a tensor of exactly one value per row.
template <typename T>
bool read_parameter(PyObject* object, const DLTensor& logits, T lowest,
                    RowParameter<T>& parameter) {
  if (Py_TYPE(object) != tensor_type) return read_value(object, lowest, parameter.value);
  DLTensor tensor;
  constexpr DLDataType kExpected = std::is_same_v<T, float> ? kFloat32 : kInt64;
  if (!read_tensor(object, tensor) || !same(tensor.dtype, kExpected) ||
      tensor.ndim != logits.ndim - 1) {
    return false;
  }
  if (tensor.ndim == 1 &&
      (tensor.shape[0] != logits.shape[0] || (tensor.shape[0] > 1 && stride_of(tensor, 0) != 1))) {
    return false;
  }
  parameter.per_row = static_cast<const T*>(data_of(tensor));
  return true;
}

// None, which leaves the value as it is, or a parameter.
template <typename T>
bool read_optional(PyObject* object, const DLTensor& logits, T lowest, RowParameter<T>& parameter) {
  return object == Py_None || read_parameter(object, logits, lowest, parameter);
}

enum Argument { kLogits, kTemperature, kTopP, kTopK, kMinP, kValidVocab, kSeed, kOffset, kTokens };
constexpr Py_ssize_t kNumArguments = kTokens + 1;

bool read_arguments(PyObject* const* objects, SampleArguments& arguments) {
  constexpr float kLowestFloat = std::numeric_limits<float>::lowest();
  constexpr int64_t kLowestInt = std::numeric_limits<int64_t>::min();
  DLTensor logits;
  DLTensor tokens;
  FilterParameters& filters = arguments.filters;
  filters.valid_vocab.value = std::numeric_limits<int64_t>::max();
  if (!read_logits(objects[kLogits], logits, arguments) ||
      !read_parameter(objects[kTemperature], logits, 0.0f, filters.temperature) ||
      !read_parameter(objects[kTopP], logits, kLowestFloat, filters.top_p) ||
      !read_optional(objects[kTopK], logits, int64_t{0}, filters.top_k) ||
      !read_optional(objects[kMinP], logits, kLowestFloat, filters.min_p) ||
      !read_optional(objects[kValidVocab], logits, int64_t{1}, filters.valid_vocab) ||
      !read_parameter(objects[kSeed], logits, kLowestInt, arguments.seed) ||
      !read_optional(objects[kOffset], logits, kLowestInt, arguments.offset) ||
      exchange->dltensor_from_py_object_no_sync(objects[kTokens], &tokens) != 0 ||
      tokens.device.device_type != kDLCPU) {  // torch's default device may be another
    PyErr_Clear();
    return false;
  }
  arguments.add_row_to_offset =
      arguments.seed.per_row == nullptr && arguments.offset.per_row == nullptr;
  arguments.tokens = static_cast<int64_t*>(tokens.data);
  return true;
}

PyObject* sample_directly(PyObject*, PyObject* const* objects, Py_ssize_t count) {
  SampleArguments arguments;
  if (exchange == nullptr || count != kNumArguments || !read_arguments(objects, arguments)) {
    Py_RETURN_FALSE;
  }
  const int64_t num_rows = arguments.layout.num_rows;
  std::vector<RowStatus> status(static_cast<size_t>(num_rows));
  arguments.status = status.data();
  Py_BEGIN_ALLOW_THREADS;
  cpu::active_kernels().sample(arguments, 0, num_rows);
  Py_END_ALLOW_THREADS;
  for (const RowStatus row : status) {
    if (row != RowStatus::kValid) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

// What the type publishes, or null; never with a Python error set.
const DLPackExchangeAPI* exchange_of(PyObject* type) {
  PyObject* capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
  if (capsule == nullptr) {
    PyErr_Clear();
    return nullptr;
  }
  constexpr const char* kName = "dlpack_exchange_api";
  // It points to what lives as long as torch, not only as long as the capsule.
  const void* pointer =
      PyCapsule_IsValid(capsule, kName) != 0 ? PyCapsule_GetPointer(capsule, kName) : nullptr;
  Py_DECREF(capsule);
  return static_cast<const DLPackExchangeAPI*>(pointer);
}

PyObject* use_tensor_type(PyObject*, PyObject* type) {
  const DLPackExchangeAPI* found = PyType_Check(type) != 0 ? exchange_of(type) : nullptr;
  if (found == nullptr || found->header.version.major != DLPACK_MAJOR_VERSION ||
      found->dltensor_from_py_object_no_sync == nullptr) {
    Py_RETURN_FALSE;
  }
  is_neg = PyUnicode_InternFromString("is_neg");
  if (is_neg == nullptr) return nullptr;
  Py_INCREF(type);
  tensor_type = reinterpret_cast<PyTypeObject*>(type);
  exchange = found;
  Py_RETURN_TRUE;
}

PyMethodDef methods[] = {
    {"sample_directly", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&sample_directly)),
     METH_FASTCALL,
     "Writes the tokens to the last argument; False if the registered op must do it."},
    {"use_tensor_type", &use_tensor_type, METH_O,
     "The type that sample_directly takes; False if this torch does not allow it."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool add_direct_sample(PyObject* module) { return PyModule_AddFunctions(module, methods) == 0; }

}  // namespace autodeco::python
