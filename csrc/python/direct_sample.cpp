// The dispatcher takes longer for the 17 arguments of `autodeco_ext::sample` than the kernel does
// for a small row. Here tensors are read without it. Anything unusual is declined, and then the
// registered op, which says what is wrong with its arguments, does the work: this file has no error
// sentences.
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "../cpu/isa.h"
#include "autodeco/sample.h"
#include "direct.h"
#include "plain_tensor.h"

namespace autodeco::python {
namespace {

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
  if (!is_tensor(object)) return read_value(object, lowest, parameter.value);
  parameter.per_row = read_one_per_row<T>(object, logits);
  return parameter.per_row != nullptr;
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
  Logits found;
  DLTensor tokens;
  FilterParameters& filters = arguments.filters;
  filters.valid_vocab.value = std::numeric_limits<int64_t>::max();
  // As many rows as one thread takes.
  if (!read_logits(objects[kLogits], found) || found.layout.num_rows > rows_at_once(found.layout)) {
    return false;
  }
  arguments.layout = found.layout;
  arguments.dtype = found.dtype;
  arguments.logits = found.data;
  const DLTensor& logits = found.tensor;
  if (!read_parameter(objects[kTemperature], logits, 0.0f, filters.temperature) ||
      !read_parameter(objects[kTopP], logits, kLowestFloat, filters.top_p) ||
      !read_optional(objects[kTopK], logits, int64_t{0}, filters.top_k) ||
      !read_optional(objects[kMinP], logits, kLowestFloat, filters.min_p) ||
      !read_optional(objects[kValidVocab], logits, int64_t{1}, filters.valid_vocab) ||
      !read_parameter(objects[kSeed], logits, kLowestInt, arguments.seed) ||
      !read_optional(objects[kOffset], logits, kLowestInt, arguments.offset) ||
      !read_new_tensor(objects[kTokens], tokens)) {
    return false;
  }
  arguments.add_row_to_offset =
      arguments.seed.per_row == nullptr && arguments.offset.per_row == nullptr;
  arguments.tokens = static_cast<int64_t*>(tokens.data);
  return true;
}

PyObject* sample_directly(PyObject*, PyObject* const* objects, Py_ssize_t count) {
  SampleArguments arguments;
  if (!can_read_tensors() || count != kNumArguments || !read_arguments(objects, arguments)) {
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

PyMethodDef methods[] = {
    {"sample_directly", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&sample_directly)),
     METH_FASTCALL,
     "Writes the tokens to the last argument; False if the registered op must do it."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool add_direct_sample(PyObject* module) { return PyModule_AddFunctions(module, methods) == 0; }

}  // namespace autodeco::python
