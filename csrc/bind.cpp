// The one binding file: wcse._core. Tensors arrive as data_ptr() integers; the Python wrappers in
// wcse/kernels/ops.py check shapes, strides and dtypes before they pass one.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "arrays.h"
#include "cpu/bind_forward.h"
#include "cpu/bind_kernels.h"
#include "kv_tree.h"
#include "plan.h"
#include "tests/bind_testing.h"
#include "text.h"
#include "thread_pool.h"
#include "work_list.h"

namespace py = pybind11;
using wcse::Ints;
using wcse::int32_array;
using wcse::KVTree;
using wcse::same_size;
using wcse::size_of;
using wcse::TextMatcher;
using wcse::to_array;

namespace {

// ------------------------------------------------------------------------------------------------- KV tree

py::dict stats_dict(const KVTree& tree) {
    const KVTree::Stats stats = tree.stats();
    py::dict d;
    d["total"] = stats.total;
    d["free"] = stats.free;
    d["cached"] = stats.cached;
    d["pinned"] = stats.pinned;
    d["in_flight"] = stats.in_flight;
    d["lent"] = stats.lent;
    d["nodes"] = stats.nodes;
    d["tokens"] = stats.tokens;
    d["peak_used"] = stats.peak_used;
    d["evicted"] = stats.evicted;
    return d;
}

Ints extend(KVTree& tree, int32_t node, const py::object& tokens) {
    const Ints ids = int32_array(tokens, "tokens");
    Ints slots(ids.size());
    tree.extend(node, ids.data(), size_of(ids), slots.mutable_data());
    return slots;
}

Ints extend_rows(KVTree& tree, const py::object& nodes, const py::object& tokens) {
    const Ints rows = int32_array(nodes, "nodes"), ids = int32_array(tokens, "tokens");
    same_size(rows, "nodes", ids, "tokens");
    Ints slots(ids.size());
    tree.extend_rows(rows.data(), ids.data(), size_of(ids), slots.mutable_data());
    return slots;
}

Ints extend_ahead(KVTree& tree, const py::object& nodes, size_t n) {
    const Ints rows = int32_array(nodes, "nodes");
    Ints slots(rows.size() * static_cast<py::ssize_t>(n));
    tree.extend_ahead(rows.data(), size_of(rows), n, slots.mutable_data());
    return slots;
}

void amend_rows(KVTree& tree, const py::object& nodes, const py::object& drop, const py::object& counts,
                const py::object& tokens) {
    const Ints rows = int32_array(nodes, "nodes"), less = int32_array(drop, "drop");
    const Ints many = int32_array(counts, "counts"), ids = int32_array(tokens, "tokens");
    same_size(rows, "nodes", less, "drop");
    same_size(rows, "nodes", many, "counts");
    tree.amend_rows(rows.data(), less.data(), many.data(), size_of(rows), ids.data(), size_of(ids));
}

std::pair<int32_t, int64_t> match_prefix(KVTree& tree, const py::object& tokens, int32_t under) {
    const Ints ids = int32_array(tokens, "tokens");
    return tree.match_prefix(ids.data(), size_of(ids), under);
}

void lend(KVTree& tree, const py::object& pages) {
    const Ints ids = int32_array(pages, "pages");
    tree.lend(ids.data(), size_of(ids));
}

void take_back(KVTree& tree, const py::object& pages) {
    const Ints ids = int32_array(pages, "pages");
    tree.take_back(ids.data(), size_of(ids));
}

void relocate(KVTree& tree, const py::object& from, const py::object& to) {
    const Ints old = int32_array(from, "from"), fresh = int32_array(to, "to");
    same_size(old, "from", fresh, "to");
    tree.relocate(old.data(), fresh.data(), size_of(old));
}

void bind_kv_tree(py::module_& m) {
    py::register_exception<wcse::KVExhausted>(m, "KVExhausted", PyExc_MemoryError);
    py::class_<KVTree>(m, "KVTree", "Owner of the pages of keys and values of a forest of token spans.")
        .def(py::init<int64_t, bool>(), py::arg("num_pages"), py::arg("debug") = false)
        .def("fork", &KVTree::fork, py::arg("parent"))
        .def("extend", &extend, py::arg("node"), py::arg("tokens"))
        .def("extend_rows", &extend_rows, py::arg("nodes"), py::arg("tokens"))
        .def("extend_ahead", &extend_ahead, py::arg("nodes"), py::arg("n"))
        .def("amend_rows", &amend_rows, py::arg("nodes"), py::arg("drop"), py::arg("counts"), py::arg("tokens"))
        .def("settle", &KVTree::settle)
        .def("seal", &KVTree::seal, py::arg("node"))
        .def("retain", &KVTree::retain, py::arg("node"))
        .def("release", &KVTree::release, py::arg("node"))
        .def("drop", &KVTree::drop, py::arg("node"))
        .def("match_prefix", &match_prefix, py::arg("tokens"), py::arg("under") = KVTree::kRoot)
        .def("evict", &KVTree::evict, py::arg("n_pages"))
        .def("spare", [](const KVTree& tree) { return to_array(tree.spare()); })
        .def("lend", &lend, py::arg("pages"))
        .def("take_back", &take_back, py::arg("pages"))
        .def("relocate", &relocate, py::arg("source"), py::arg("target"))
        .def("check", &KVTree::check)
        .def("alive", &KVTree::alive, py::arg("node"))
        .def("length", &KVTree::length, py::arg("node"))
        .def("depth", &KVTree::depth, py::arg("node"))
        .def("parent", &KVTree::parent, py::arg("node"))
        .def("refs", &KVTree::refs, py::arg("node"))
        .def("sealed", &KVTree::sealed, py::arg("node"))
        .def("tokens", [](const KVTree& tree, int32_t node) { return to_array(tree.tokens(node)); }, py::arg("node"))
        .def("pages", [](const KVTree& tree, int32_t node) { return to_array(tree.pages(node)); }, py::arg("node"))
        .def("stats", &stats_dict);
}

// ---------------------------------------------------------------------------------------------------- plan

wcse::Plan make_plan(const KVTree& tree, const py::object& nodes, const py::object& n_new) {
    const Ints ids = int32_array(nodes, "nodes"), counts = int32_array(n_new, "n_new");
    same_size(ids, "nodes", counts, "n_new");
    return wcse::make_plan(tree, ids.data(), counts.data(), size_of(ids));
}

template <class Owner>
auto array_of(std::vector<int32_t> Owner::*field) {
    return [field](const Owner& owner) { return to_array(owner.*field); };
}

void bind_plan(py::module_& m) {
    using wcse::Plan;
    using wcse::PlanNodes;
    py::class_<PlanNodes>(m, "PlanNodes", "One entry per tree node that some row of the plan sees.")
        .def("__len__", &PlanNodes::size)
        .def_property_readonly("lo", array_of(&PlanNodes::lo))
        .def_property_readonly("hi", array_of(&PlanNodes::hi))
        .def_property_readonly("page_begin", array_of(&PlanNodes::page_begin))
        .def_property_readonly("page_end", array_of(&PlanNodes::page_end))
        .def_property_readonly("length", array_of(&PlanNodes::length))
        .def_property_readonly("seen", array_of(&PlanNodes::seen))
        .def_property_readonly("pos", array_of(&PlanNodes::pos));
    py::class_<Plan>(m, "Plan", "Rows of one forward pass in depth-first order, and the pages that each sees.")
        .def_property_readonly("order", array_of(&Plan::order))
        .def_property_readonly("row_start", array_of(&Plan::row_start))
        .def_property_readonly("positions", array_of(&Plan::positions))
        .def_property_readonly("pages", array_of(&Plan::pages))
        .def_property_readonly("nodes", [](const Plan& plan) -> const PlanNodes& { return plan.nodes; },
                               py::return_value_policy::reference_internal)
        .def_property_readonly("n_rows", &Plan::n_rows)
        .def(
            "advance",
            [](Plan& plan, const py::object& slots) {
                const Ints next = int32_array(slots, "slots");
                wcse::advance_plan(plan, next.data(), size_of(next));
            },
            py::arg("slots"));
    m.def("plan", &make_plan, py::arg("tree"), py::arg("nodes"), py::arg("n_new"));
}

void bind_work_list(py::module_& m) {
    using wcse::WorkList;
    py::class_<WorkList>(m, "WorkList", "A plan cut into work items for a GPU.")
        .def_property_readonly("items", array_of(&WorkList::items))
        .def_property_readonly("page", array_of(&WorkList::page))
        .def_property_readonly("rows", array_of(&WorkList::rows))
        .def_property_readonly("pos", array_of(&WorkList::pos))
        .def_property_readonly("merge", array_of(&WorkList::merge))
        .def_property_readonly("tails", array_of(&WorkList::tails))
        .def_readonly("slots", &WorkList::slots)
        .def_readonly("entries", &WorkList::entries);
    m.def(
        "work_list",
        [](const wcse::Plan& plan, int32_t tile_rows, int32_t block_pages, int32_t items, int32_t least_pages,
           int32_t window, const std::optional<py::object>& ahead) {
            wcse::WorkOptions options{tile_rows, block_pages, items, least_pages, window};
            Ints pages;
            if (ahead) {
                pages = int32_array(*ahead, "ahead");
                const int32_t rows = plan.n_rows();
                if (rows == 0 || size_of(pages) % static_cast<size_t>(rows))
                    throw py::value_error("work_list: ahead needs as many pages for each of the plan's rows");
                options.ahead = pages.data();
                options.ahead_pages = static_cast<int32_t>(size_of(pages)) / rows;
            }
            return wcse::make_work_list(plan, options);
        },
        py::arg("plan"), py::kw_only(), py::arg("tile_rows"), py::arg("block_pages"), py::arg("items"),
        py::arg("least_pages"), py::arg("window") = 0, py::arg("ahead") = py::none());
}

// ---------------------------------------------------------------------------------------------------- text

py::array_t<uint8_t> advance(TextMatcher& matcher, const py::object& slots, const py::object& tokens) {
    const Ints rows = int32_array(slots, "slots"), ids = int32_array(tokens, "tokens");
    same_size(rows, "slots", ids, "tokens");
    py::array_t<uint8_t> found(rows.size());
    matcher.advance(rows.data(), ids.data(), size_of(rows), found.mutable_data());
    return found;
}

std::string bytes_in(const py::bytes& bytes) { return bytes; }

std::vector<std::string> bytes_in(const std::vector<py::bytes>& list) { return {list.begin(), list.end()}; }

void bind_text(py::module_& m) {
    py::class_<wcse::Automaton>(m, "Automaton", "Follows a delimiter or stop strings through a text.")
        .def_property_readonly("states", &wcse::Automaton::states);
    // py::bytes, not std::string: the latter would take str as well.
    py::class_<TextMatcher>(m, "TextMatcher", "Finds delimiters and stop strings in the bytes of tokens.")
        .def(py::init([](const std::vector<py::bytes>& token_bytes) { return TextMatcher(bytes_in(token_bytes)); }),
             py::arg("token_bytes"))
        .def("pattern",
             [](TextMatcher& matcher, const py::bytes& delimiter, const std::vector<py::bytes>& stops) {
                 return matcher.pattern(bytes_in(delimiter), bytes_in(stops));
             },
             py::arg("delimiter"), py::arg("stops"))
        .def("release", &TextMatcher::release, py::arg("pattern"))
        .def_property_readonly("patterns", &TextMatcher::patterns)
        .def("open",
             [](TextMatcher& matcher, int32_t pattern, const py::bytes& history) {
                 return matcher.open(pattern, std::string_view(history));
             },
             py::arg("pattern"), py::arg("history") = py::bytes())
        .def("close", &TextMatcher::close, py::arg("slot"))
        .def("new_step", &TextMatcher::new_step, py::arg("slot"))
        .def("advance", &advance, py::arg("slots"), py::arg("tokens"))
        .def("stop", &TextMatcher::stop, py::arg("slot"))
        .def("automaton", &TextMatcher::automaton, py::arg("pattern"), py::arg("bit"))
        .def("table",
             [](const TextMatcher& matcher, const wcse::Automaton& automaton) {
                 const std::vector<uint16_t> entries = matcher.table(automaton);
                 return py::array_t<uint16_t>({static_cast<py::ssize_t>(automaton.states()),
                                               static_cast<py::ssize_t>(entries.size()) / automaton.states()},
                                              entries.data());
             },
             py::arg("automaton"))
        .def("state", &TextMatcher::state, py::arg("automaton"), py::arg("slot"), py::arg("bit"));
}

// --------------------------------------------------------------------------------------------- thread pool

void bind_thread_pool(py::module_& m) {
    m.def("num_threads", &wcse::num_threads, "Threads that take part in a parallel loop.");
    m.def("set_num_threads", &wcse::set_num_threads, py::arg("n"));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "wcse native core: KV tree, planner, CPU kernels, text matching";
    bind_kv_tree(m);
    bind_plan(m);
    bind_work_list(m);
    bind_text(m);
    bind_thread_pool(m);
    wcse::bind_kernels(m);
    wcse::bind_forward(m);
    wcse::bind_testing(m);
}
