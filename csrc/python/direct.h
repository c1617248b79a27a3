// What the direct calls add to `_C`: the CPU sampler and losses without the dispatcher, for plain
// tensors. Each function returns false with a Python error set.
#pragma once

// Python's own C interface: pybind11 would take longer to compile than the rest.
#include <Python.h>

namespace autodeco::python {

bool add_plain_tensor(PyObject* module);
bool add_direct_sample(PyObject* module);
bool add_direct_loss(PyObject* module);

}  // namespace autodeco::python
