// The one binding file: wcse._core. Tensors arrive as data_ptr() integers; the Python wrappers in
// wcse/kernels/ops.py check shapes, strides and dtypes before they pass one.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "thread_pool.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
    m.doc() = "wcse native core: KV tree, planner, CPU kernels, text matching";
    m.def("num_threads", &wcse::num_threads, "Threads that take part in a parallel loop.");
    m.def("set_num_threads", &wcse::set_num_threads, py::arg("n"));
}
