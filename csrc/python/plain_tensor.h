// Tensors as the direct calls take them: read through DLPack's C exchange functions, which
// torch.Tensor publishes, without the dispatcher.
#pragma once

#include <ATen/dlpack.h>
#include <Python.h>

#include <type_traits>

#include "autodeco/dtype.h"
#include "autodeco/row_layout.h"

namespace autodeco::python {

// Whether use_tensor_type has found what the other functions need.
bool can_read_tensors();

bool is_tensor(PyObject* object);

// False, and no Python error, for what is not a plain tensor with memory on the CPU: a subclass, a
// wrapper of a function transform, a lazily negated view.
bool read_tensor(PyObject* object, DLTensor& tensor);

// The same for a tensor that the caller has just made.
bool read_new_tensor(PyObject* object, DLTensor& tensor);

struct Logits {
  DLTensor tensor;
  DType dtype;
  RowLayout layout;
  const void* data;
};

// [..., vocab] with strides that a RowLayout holds.
bool read_logits(PyObject* object, Logits& logits);

const void* data_of(const DLTensor& tensor);

constexpr DLDataType kFloat32{kDLFloat, 32, 1};
constexpr DLDataType kInt64{kDLInt, 64, 1};

bool is_dense(const DLTensor& tensor, DLDataType dtype, const int64_t* shape, int num_dims);

// One value in memory, whatever the shape.
bool is_repeated(const DLTensor& tensor, DLDataType dtype);

// A dense tensor of exactly one value per row, or null.
template <typename T>
const T* read_one_per_row(PyObject* object, const DLTensor& logits) {
  constexpr DLDataType kExpected = std::is_same_v<T, float> ? kFloat32 : kInt64;
  DLTensor tensor;
  const bool fits =
      read_tensor(object, tensor) && is_dense(tensor, kExpected, logits.shape, logits.ndim - 1);
  return fits ? static_cast<const T*>(data_of(tensor)) : nullptr;
}

}  // namespace autodeco::python
