// Python binding of the forward pass. Tensors arrive as addresses that kernels/ops/layers.py has checked, and which it
// keeps alive; the interpreter lock is released while layers run.
#include "cpu/bind_forward.h"

#include <pybind11/stl.h>

#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/forward.h"
#include "thread_pool.h"

namespace py = pybind11;

namespace wcse {
namespace {

using Address = uintptr_t;
// As score_steps has its layers: (panels, bits, group, wide, minima, integer, bias or 0, n, k).
using MatrixTuple = std::tuple<Address, int, int, bool, bool, bool, Address, int64_t, int64_t>;
using Rope = std::tuple<Address, Address, int64_t>;

template <class T = const float>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

cpu::Matrix matrix(const MatrixTuple& given) {
    const auto& [panels, bits, group, wide, minima, integer, bias, n, k] = given;
    return {{at<const char>(panels), bits, group, wide, minima, integer}, at(bias), n, k};
}

// Norms: of the attention's input, the MLP's, what attention and MLP give, queries, keys; 0 where there is none.
cpu::LayerArgs layer(const std::vector<Address>& norms, const std::vector<MatrixTuple>& m, int64_t window, int rope) {
    return {at(norms.at(0)), at(norms.at(1)),   at(norms.at(2)),   at(norms.at(3)),   at(norms.at(4)), at(norms.at(5)),
            matrix(m.at(0)), matrix(m.at(1)), matrix(m.at(2)), matrix(m.at(3)), window,          rope};
}

void run(cpu::Forward& forward, const Plan& plan, Address x, int64_t rows, Address positions, Address slots,
         const std::vector<Rope>& ropes, Address k_pages, Address v_pages, int64_t n_pages, int64_t page_stride,
         int64_t layer_stride, bool half, Address out_rows, int64_t n_out, Address out, int threads) {
    py::gil_scoped_release release;
    if (num_threads() != threads) set_num_threads(threads);
    std::vector<cpu::RopeTable> tables;
    for (const auto& [cos, sin, positions_] : ropes) tables.push_back({at(cos), at(sin), positions_});
    forward.run(plan, {at<float>(x), rows, at<const int32_t>(positions), at<const int32_t>(slots), std::move(tables),
                       at<char>(k_pages), at<char>(v_pages), half, n_pages, page_stride, layer_stride,
                       at<const int64_t>(out_rows), n_out, at<float>(out)});
}

}  // namespace

void bind_forward(py::module_& m) {
    py::class_<cpu::LayerArgs>(m, "LayerArgs", "One layer's weights, by address.")
        .def(py::init(&layer), py::arg("norms"), py::arg("matrices"), py::arg("window"), py::arg("rope"));
    py::class_<cpu::Forward>(m, "Forward", "The layers of a decoder, run in one call.")
        .def(py::init([](std::vector<cpu::LayerArgs> layers, Address final_norm, int64_t dim, int n_heads,
                         int n_kv_heads, int d, float eps, float norm_offset, float scale, float softcap, bool gelu) {
                 return std::make_unique<cpu::Forward>(cpu::ModelArgs{std::move(layers), at(final_norm), dim, n_heads,
                                                                      n_kv_heads, d, eps, norm_offset, scale, softcap,
                                                                      gelu});
             }),
             py::kw_only(), py::arg("layers"), py::arg("final_norm"), py::arg("dim"), py::arg("n_heads"),
             py::arg("n_kv_heads"), py::arg("d"), py::arg("eps"), py::arg("norm_offset"), py::arg("scale"),
             py::arg("softcap"), py::arg("gelu"))
        .def("forward", &run);
    m.def("stage_seconds", &cpu::stage_seconds,
          "Seconds that forward passes of this process spent so far on matrices, attention, and rows.");
}

}  // namespace wcse
