// The integer dot products for x86 with AVX-512 F, BW, VL, DQ and VNNI; the other kernels are those of avx512.cpp, where the
// rules for such files stand.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // see avx512.cpp
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "cpu/table.h"

namespace wcse::cpu {
namespace {
#include "cpu/simd_avx512.inl"
#include "cpu/simd.inl"
#include "cpu/gemm.inl"
#include "cpu/quant.inl"
#include "cpu/dot.inl"
}  // namespace

const Table& avx512_vnni_table() {
    static const Table table = [] {
        Table copy = avx512_table();
        copy.name = "avx512_vnni";
        set_integer_kernels(copy);
        return copy;
    }();
    return table;
}

}  // namespace wcse::cpu
