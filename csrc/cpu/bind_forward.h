// Adds the forward pass of a decoder to the module wcse._core.
#pragma once
#include <pybind11/pybind11.h>

namespace wcse {

void bind_forward(pybind11::module_& m);

}  // namespace wcse
