// The integer dot products for x86 with AVX2 and AVX-VNNI; the other kernels are those of avx2.cpp, where the
// rules for such files stand.
#include <immintrin.h>

#include <cstdint>

#include "cpu/table.h"

namespace wcse::cpu {
namespace {
#include "cpu/simd_avx2.inl"
#include "cpu/simd.inl"
#include "cpu/gemm.inl"
#include "cpu/quant.inl"
#include "cpu/dot.inl"
}  // namespace

const Table& avx_vnni_table() {
    static const Table table = [] {
        Table copy = avx2_table();
        copy.name = "avx_vnni";
        set_integer_kernels(copy);
        return copy;
    }();
    return table;
}

}  // namespace wcse::cpu
