// Python bindings of the CPU kernels. Tensors arrive as addresses that kernels/ops.py has checked; the interpreter
// lock is released while a kernel runs. Every kernel takes the number of threads to use, which is torch's.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "cpu/bind_kernels.h"
#include "cpu/kernels.h"
#include "thread_pool.h"

namespace py = pybind11;

namespace wcse {
namespace {

using Address = uintptr_t;

template <class T = const float>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

void use_threads(int threads) {
    if (num_threads() != threads) set_num_threads(threads);
}

void tree_attention(const Plan& plan, Address q, Address k_pages, Address v_pages, Address out, int n_heads,
                    int n_kv_heads, int d, int64_t n_pages, int64_t page_stride, float scale, float softcap,
                    int64_t window, bool half, int threads) {
    py::gil_scoped_release release;
    use_threads(threads);
    cpu::tree_attention(plan, {at(q), at<const void>(k_pages), at<const void>(v_pages), at<float>(out), n_heads,
                               n_kv_heads, d, n_pages, page_stride, scale, softcap, window, half});
}

void linear(Address x, Address panels, int bits, int group, bool wide, bool minima, bool integer, Address bias,
            Address residual, Address out, int64_t rows, int64_t n, int64_t k, int threads) {
    py::gil_scoped_release release;
    use_threads(threads);
    const cpu::Weight weight{at<const char>(panels), bits, group, wide, minima, integer};
    cpu::linear({at(x), weight, at(bias), at(residual), at<float>(out), n, k}, rows);
}

void rms_norm(Address x, Address residual, Address weight, Address out, int64_t rows, int64_t width, float eps,
              float offset, int threads) {
    py::gil_scoped_release release;
    use_threads(threads);
    cpu::rms_norm({at(x), at<float>(residual), at(weight), at<float>(out), width, eps, offset}, rows);
}

void gated_act(Address gate_up, Address out, int64_t rows, int64_t width, bool gelu, int threads) {
    py::gil_scoped_release release;
    use_threads(threads);
    cpu::gated_act({at(gate_up), at<float>(out), width, gelu}, rows);
}

void rope_write_kv(Address qkv, Address positions, Address slots, Address cos, Address sin, Address q_norm,
                   Address k_norm, Address q, Address k_pages, Address v_pages, int64_t rows, int n_heads,
                   int n_kv_heads, int d, int64_t n_positions, int64_t n_pages, int64_t page_stride, float eps,
                   float norm_offset, bool half, int threads) {
    py::gil_scoped_release release;
    use_threads(threads);
    const cpu::RopeArgs args{at(qkv),        at<const int32_t>(positions),
                             at<const int32_t>(slots), at(cos),
                             at(sin),        at(q_norm),
                             at(k_norm),     at<float>(q),
                             at<void>(k_pages), at<void>(v_pages),
                             page_stride,    half,
                             n_heads,        n_kv_heads,
                             d,              eps,
                             norm_offset};
    cpu::rope(args, rows, n_positions, n_pages);
}

void sample(Address logits, Address rows, Address temperature, Address top_k, Address top_p, Address min_p,
            Address keys, Address counters, Address tokens, Address logprobs, int64_t n_rows, int64_t vocab,
            int64_t draws, int threads) {
    py::gil_scoped_release release;
    use_threads(threads);
    using Ints = const int32_t;
    cpu::sample({at(logits), n_rows, vocab, at<Ints>(rows), at(temperature), at<Ints>(top_k), at(top_p), at(min_p),
                 at<const uint64_t>(keys), at<Ints>(counters), at<int32_t>(tokens), at<float>(logprobs), draws});
}

void token_logprobs(Address logits, Address tokens, Address out, int64_t rows, int64_t vocab, int threads) {
    py::gil_scoped_release release;
    use_threads(threads);
    cpu::token_logprobs(at(logits), at<const int32_t>(tokens), at<float>(out), rows, vocab);
}

// A layer is (panels, bits, group, wide, minima, integer, bias or 0, n, k).
using Layer = std::tuple<Address, int, int, bool, bool, bool, Address, int64_t, int64_t>;

// Groups are (group, order, bounds, how, best, number of groups, places in best).
using Groups = std::tuple<Address, Address, Address, Address, Address, int64_t, int64_t>;

void score_steps(Address hidden, Address rows, const std::vector<Layer>& layers, Address known, Address above,
                 const Groups& groups, Address out, int64_t n_rows, int64_t n_known, int64_t steps, bool bounded,
                 int threads) {
    py::gil_scoped_release release;
    use_threads(threads);
    std::vector<cpu::LinearArgs> args;
    for (const auto& [panels, bits, group, wide, minima, integer, bias, n, k] : layers) {
        const cpu::Weight weight{at<const char>(panels), bits, group, wide, minima, integer};
        args.push_back({nullptr, weight, at(bias), nullptr, nullptr, n, k});
    }
    const auto& [group, order, bounds, how, best, n_groups, n_best] = groups;
    cpu::score_steps({at(hidden), n_rows, at<const int32_t>(rows), args.data(), static_cast<int>(args.size()), bounded,
                      at<const cpu::PathScores>(known), n_known, at<const int32_t>(above), at<cpu::PathScores>(out),
                      steps, at<const int32_t>(group), at<const double>(order), n_groups, at<const int32_t>(bounds),
                      at<const cpu::Aggregation>(how), at<cpu::Place>(best), n_best});
}

double fma_peak(int threads, double seconds) {
    py::gil_scoped_release release;
    use_threads(threads);
    return cpu::fma_peak(seconds);
}

double dot_peak(int threads, double seconds) {
    py::gil_scoped_release release;
    use_threads(threads);
    return cpu::dot_peak(seconds);
}

}  // namespace

void bind_kernels(py::module_& m) {
    m.def("cpu_isa", &cpu::isa, "Instruction set of the kernels in use.");
    m.def("cpu_isas", &cpu::isas, "Instruction sets that this processor runs, best first.");
    m.def("set_cpu_isa", &cpu::set_isa, py::arg("name"), "Use this one of cpu_isas(), for tests and comparisons.");
    m.def("unpack_rows", [] { return cpu::active().unpack_rows; },
          "Up to so many rows linear unpacks quantised weights in registers; beyond, blocks of them into the cache.");
    m.def("fma_peak", &fma_peak, py::arg("threads"), py::arg("seconds") = 0.2,
          "Floating-point operations per second of bare multiply-adds on this many threads.");
    m.def("dot_peak", &dot_peak, py::arg("threads"), py::arg("seconds") = 0.2,
          "Integer operations per second of bare dot products of bytes on this many threads.");
    m.def("tree_attention", &tree_attention);
    m.def("linear", &linear);
    m.def("rms_norm", &rms_norm);
    m.def("gated_act", &gated_act);
    m.def("rope_write_kv", &rope_write_kv);
    m.def("sample", &sample);
    m.def("token_logprobs", &token_logprobs);
    m.def("score_steps", &score_steps);
}

}  // namespace wcse
