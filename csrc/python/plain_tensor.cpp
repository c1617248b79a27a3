#include "plain_tensor.h"

#include <optional>

#include "direct.h"

namespace autodeco::python {
namespace {

const DLPackExchangeAPI* exchange = nullptr;
PyTypeObject* tensor_type = nullptr;
PyObject* is_neg = nullptr;

bool same(DLDataType a, DLDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

// In elements; without strides a tensor is dense.
int64_t stride_of(const DLTensor& tensor, int dim) {
  if (tensor.strides != nullptr) return tensor.strides[dim];
  int64_t stride = 1;
  for (int inner = dim + 1; inner < tensor.ndim; ++inner) stride *= tensor.shape[inner];
  return stride;
}

std::optional<DType> dtype_of(const DLTensor& logits) {
  if (same(logits.dtype, kFloat32)) return DType::kFloat32;
  if (same(logits.dtype, {kDLBfloat, 16, 1})) return DType::kBFloat16;
  if (same(logits.dtype, {kDLFloat, 16, 1})) return DType::kFloat16;
  return std::nullopt;
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
    {"use_tensor_type", &use_tensor_type, METH_O,
     "The type that direct calls take; False if this torch does not allow it."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool add_plain_tensor(PyObject* module) { return PyModule_AddFunctions(module, methods) == 0; }

bool can_read_tensors() { return exchange != nullptr; }

bool is_tensor(PyObject* object) { return Py_TYPE(object) == tensor_type; }

bool read_new_tensor(PyObject* object, DLTensor& tensor) {
  if (exchange->dltensor_from_py_object_no_sync(object, &tensor) == 0) return true;
  PyErr_Clear();
  return false;
}

bool read_tensor(PyObject* object, DLTensor& tensor) {
  if (!is_tensor(object) || !read_new_tensor(object, tensor)) return false;
  if (tensor.device.device_type != kDLCPU || tensor.data == nullptr) return false;
  PyObject* negated = PyObject_CallMethodNoArgs(object, is_neg);
  if (negated == nullptr) PyErr_Clear();
  Py_XDECREF(negated);
  return negated == Py_False;
}

bool read_logits(PyObject* object, Logits& logits) {
  DLTensor& tensor = logits.tensor;
  if (!read_tensor(object, tensor) || tensor.ndim < 1) return false;
  const std::optional<DType> dtype = dtype_of(tensor);
  const int last = tensor.ndim - 1;
  logits.layout = {};
  logits.layout.vocab = tensor.shape[last];
  logits.layout.num_rows = 1;
  if (!dtype.has_value() || logits.layout.vocab < 1 || logits.layout.vocab > kMaxCountableVocab ||
      (logits.layout.vocab > 1 && stride_of(tensor, last) != 1)) {
    return false;
  }
  for (int dim = 0; dim < last; ++dim) {
    if (!add_dimension(logits.layout, tensor.shape[dim], stride_of(tensor, dim))) return false;
  }
  logits.dtype = *dtype;
  logits.data = data_of(tensor);
  return logits.layout.num_rows > 0;
}

const void* data_of(const DLTensor& tensor) {
  return static_cast<const char*>(tensor.data) + tensor.byte_offset;
}

bool is_dense(const DLTensor& tensor, DLDataType dtype, const int64_t* shape, int num_dims) {
  if (!same(tensor.dtype, dtype) || tensor.ndim != num_dims) return false;
  int64_t dense = 1;
  for (int dim = num_dims - 1; dim >= 0; --dim) {
    const int64_t size = tensor.shape[dim];
    if (size != shape[dim] || (size > 1 && stride_of(tensor, dim) != dense)) return false;
    dense *= size;
  }
  return true;
}

bool is_repeated(const DLTensor& tensor, DLDataType dtype) {
  if (!same(tensor.dtype, dtype)) return false;
  for (int dim = 0; dim < tensor.ndim; ++dim) {
    if (tensor.shape[dim] > 1 && stride_of(tensor, dim) != 0) return false;
  }
  return true;
}

}  // namespace autodeco::python
