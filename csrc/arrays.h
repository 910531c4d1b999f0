// Integer arrays across the Python border: any 1-d integer array or sequence in, int32 arrays out.
#pragma once
#include <pybind11/numpy.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace wcse {

using Ints = pybind11::array_t<int32_t, pybind11::array::c_style>;

// Values are never cut: a float is a TypeError, a number outside int32 a ValueError.
inline Ints int32_array(const pybind11::object& given, const char* name) {
    namespace py = pybind11;
    if (Ints::check_(given)) {
        Ints array = py::reinterpret_borrow<Ints>(given);
        if (array.ndim() == 1) return array;
    }
    const py::array any = py::array::ensure(given);
    if (!any) throw py::error_already_set();
    if (any.ndim() != 1)
        throw py::value_error(std::string(name) + ": has " + std::to_string(any.ndim()) + " dimensions, must have 1");
    const char kind = any.dtype().kind();
    if (any.size() != 0 && kind != 'i' && kind != 'u')
        throw py::type_error(std::string(name) + ": dtype is " + py::str(any.dtype()).cast<std::string>() +
                             ", must be an integer type");
    const py::array_t<int64_t, py::array::c_style | py::array::forcecast> wide(any);
    Ints array(wide.size());
    for (py::ssize_t i = 0; i < wide.size(); i++) {
        const int64_t value = wide.data()[i];
        if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max())
            throw py::value_error(std::string(name) + ": " + std::to_string(value) + " does not fit int32");
        array.mutable_data()[i] = static_cast<int32_t>(value);
    }
    return array;
}

inline Ints to_array(const std::vector<int32_t>& values) {
    return Ints(static_cast<pybind11::ssize_t>(values.size()), values.data());
}

inline size_t size_of(const Ints& array) { return static_cast<size_t>(array.size()); }

inline void same_size(const Ints& a, const char* a_name, const Ints& b, const char* b_name) {
    if (a.size() != b.size())
        throw pybind11::value_error(std::string(a_name) + " has " + std::to_string(a.size()) + " entries and " +
                                    b_name + " " + std::to_string(b.size()) + "; they must agree");
}

}  // namespace wcse
