// `_C.sample_directly`: the CPU sampler without the dispatcher, for plain tensors.
#pragma once

// Python's own C interface: pybind11 would take longer to compile than the rest.
#include <Python.h>

namespace autodeco::python {

// False with a Python error set.
bool add_direct_sample(PyObject* module);

}  // namespace autodeco::python
