// The kernels for any processor: no extra compiler flags, vectors through the compiler's extension.
#include <cstdint>

#include "cpu/table.h"

namespace wcse::cpu {
namespace {
#include "cpu/simd_portable.inl"
#include "cpu/kernels.inl"

constexpr Table table = make_table("portable");
}  // namespace

const Table& portable_table() { return table; }

}  // namespace wcse::cpu
