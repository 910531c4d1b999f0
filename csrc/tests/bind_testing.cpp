#include "bind_testing.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "kv_tree_fuzz.h"
#include "thread_pool.h"

namespace py = pybind11;

namespace wcse {
namespace {

py::dict fuzz(uint64_t seed, int64_t operations) {
    FuzzReport report;
    {
        py::gil_scoped_release release;
        report = fuzz_kv_tree(seed, operations);
    }
    py::dict d;
    d["operations"] = report.operations;
    d["refused"] = report.refused;
    d["exhausted"] = report.exhausted;
    d["evicted_pages"] = report.evicted_pages;
    d["matched_tokens"] = report.matched_tokens;
    d["trees"] = report.trees;
    return d;
}

// How often a loop over [0, n) visited each index. With `nested` the body counts a nested loop of that many
// iterations instead, which takes as long as one likes; at index `fail_at` it throws. Returns the counts and what
// was thrown.
py::tuple loop(int64_t n, int64_t chunk, int64_t nested, int64_t fail_at) {
    std::vector<int32_t> visits(static_cast<size_t>(n), 0);
    std::string thrown;
    {
        py::gil_scoped_release release;
        try {
            parallel_for(n, chunk, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; i++) {
                    int32_t& count = visits[static_cast<size_t>(i)];
                    if (nested == 0) count++;
                    parallel_for(nested, 1, [&](int64_t from, int64_t to) {
                        volatile int32_t slow = 0;
                        for (int64_t j = from; j < to; j++) slow = slow + 1;
                        count += slow;
                    });
                    if (i == fail_at) throw std::runtime_error("index " + std::to_string(i));
                }
            });
        } catch (const std::runtime_error& e) {
            thrown = e.what();
        }
    }
    return py::make_tuple(py::array_t<int32_t>(static_cast<py::ssize_t>(n), visits.data()), thrown);
}

}  // namespace

void bind_testing(py::module_& m) {
    py::module_ testing = m.def_submodule("_testing", "Hooks that only the tests use.");
    testing.def("fuzz_kv_tree", &fuzz, py::arg("seed"), py::arg("operations"));
    testing.def("kv_tree_faults", &KVTreeFaults::names);
    testing.def("plant_fault", &KVTreeFaults::plant, py::arg("tree"), py::arg("name"), py::arg("node"));
    testing.def("loop", &loop, py::arg("n"), py::arg("chunk"), py::arg("nested") = 0, py::arg("fail_at") = -1);
}

}  // namespace wcse
