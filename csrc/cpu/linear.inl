// Linear layers over ranges of rows and panels: blocks of k, and which tiles run.

template <int BITS, template <int, int> class Run>
inline void quant_tiles(LinearTile t, int64_t rows, int columns, float* scratch) {
    if (rows <= UNPACK_ROWS && t.k % OCTET == 0) return linear_tiles<Run, QuantShape>(t, rows, columns);
    unpack_block<BITS>(t.b, t.weight, t.k, scratch);
    t.b = reinterpret_cast<const char*>(scratch);
    t.panel_stride = K_BLOCK * PANEL * static_cast<int64_t>(sizeof(float));
    linear_tiles<LinearRun>(t, rows, columns);
}

void linear(const LinearArgs& g, int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end,
            float* scratch) {
    // Blocks of k depend on k alone, never on the batch or the format.
    const int64_t blocks = (g.k + K_BLOCK - 1) / K_BLOCK;
    const int64_t per_block = ((g.k + blocks - 1) / blocks + K_STEP - 1) / K_STEP * K_STEP;
    const int64_t rows = row_end - row_begin;
    for (int64_t k = 0; k < g.k; k += per_block) {
        LinearTile t;
        t.weight = g.weight;
        t.k = g.k - k < per_block ? g.k - k : per_block;
        t.lda = g.k;
        t.ldc = g.n;
        t.panel_stride = g.weight.bits == 32 ? g.k * PANEL * static_cast<int64_t>(sizeof(float)) : 0;
        t.a = g.x + row_begin * g.k + k;
        for (int64_t p = panel_begin; p < panel_end; p += BLOCK_PANELS) {
            const int64_t column = p * PANEL, at = row_begin * g.n + column;
            const int64_t end = (p + BLOCK_PANELS < panel_end ? p + BLOCK_PANELS : panel_end) * PANEL;
            const int columns = static_cast<int>((end < g.n ? end : g.n) - column);
            t.b = g.weight.data + p / BLOCK_PANELS * g.weight.block_bytes(g.k) + g.weight.offset(k);
            t.c = g.out + at;
            t.add = k ? t.c : g.bias ? g.bias + column : nullptr;
            t.ld_add = k ? g.n : 0;
            t.residual = k + per_block >= g.k && g.residual ? g.residual + at : nullptr;
            if (g.weight.bits == 8)
                quant_tiles<8, Quant8Run>(t, rows, columns, scratch);
            else if (g.weight.bits == 4)
                quant_tiles<4, Quant4Run>(t, rows, columns, scratch);
            else
                linear_tiles<LinearRun>(t, rows, columns);
        }
    }
}
