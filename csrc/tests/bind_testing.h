// wcse._core._testing: hooks that only the tests use.
#pragma once
#include <pybind11/pybind11.h>

namespace wcse {

void bind_testing(pybind11::module_& m);

}  // namespace wcse
