// Adds the CPU kernels to the module wcse._core.
#pragma once
#include <pybind11/pybind11.h>

namespace wcse {

void bind_kernels(pybind11::module_& m);

}  // namespace wcse
