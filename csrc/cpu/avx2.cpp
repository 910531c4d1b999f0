// The kernels for x86 with AVX2, FMA and F16C. Only this file may be compiled with those instructions, and
// all of it has internal linkage, so that no other file can end up with its code.
#include <immintrin.h>

#include <cstdint>

#include "cpu/table.h"

namespace wcse::cpu {
namespace {
#include "cpu/simd_avx2.inl"
#include "cpu/kernels.inl"

constexpr Table table = make_table("avx2");
}  // namespace

const Table& avx2_table() { return table; }

}  // namespace wcse::cpu
