// Everything that is compiled once per instruction set. Included inside an anonymous namespace.
#include "cpu/simd.inl"
#include "cpu/gemm.inl"
#include "cpu/quant.inl"
#include "cpu/linear.inl"
#include "cpu/dot.inl"
#include "cpu/rows.inl"
#include "cpu/attend.inl"
#include "cpu/sample.inl"

double fma_loop(int64_t iterations) {
    constexpr int CHAINS = 12;  // enough to hide the latency of two units
    volatile float source[2] = {0.999999f, 1e-6f};
    const Reg a = set1(source[0]), b = set1(source[1]);
    Reg c[CHAINS];
    unroll<CHAINS>([&](auto i) { c[i] = set1(source[0] + static_cast<float>(i)); });
    for (int64_t n = 0; n < iterations; n++) unroll<CHAINS>([&](auto i) { c[i] = fma(c[i], a, b); });
    unroll<CHAINS>([&](auto i) { c[0] = max(c[0], c[i]); });
    float last[W];
    store(last, c[0]);
    source[0] = last[0];
    return 2.0 * W * CHAINS * static_cast<double>(iterations);
}

constexpr Table make_table(const char* name) {
    Table table{};
    table.name = name;
    table.unpack_rows = UNPACK_ROWS;
    table.linear = linear;
    table.rms_norm = rms_norm;
    table.rope = rope;
    table.gated_act = gated_act;
    table.scale = scale;
    table.widen = widen;
    table.attend = attend;
    table.normalise = normalise;
    table.row_top = row_top;
    table.prefix_sums = prefix_sums;
    table.masses = masses;
    table.ids_between = ids_between;
    table.exps = exps;
    table.fma_loop = fma_loop;
    set_integer_kernels(table);
    return table;
}
