// `_C.sample_directly`: the CPU sampler without the dispatcher, for plain tensors.
#pragma once

#include <pybind11/pybind11.h>

namespace autodeco::python {

void add_direct_sample(pybind11::module_& module);

}  // namespace autodeco::python
