// The kernels for x86 with AVX-512 F, BW, VL and DQ. Only this file may be compiled with those instructions, and
// all of it has internal linkage, so that no other file can end up with its code.
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header leaves the pass-through operand of unmasked instructions undefined and warns of it (PR 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "cpu/table.h"

namespace wcse::cpu {
namespace {
#include "cpu/simd_avx512.inl"
#include "cpu/kernels.inl"

constexpr Table table = make_table("avx512");
}  // namespace

const Table& avx512_table() { return table; }

}  // namespace wcse::cpu
