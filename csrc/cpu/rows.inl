// Norms, rotary embedding, activations: one row at a time.

constexpr float LOG2E = 1.44269504088896341f;

inline float root(float x) { return __builtin_sqrtf(x); }

// 1 / sqrt(mean(x^2) + eps)
inline float inverse_rms(const float* x, int64_t n, float eps) {
    Vec total = vzero();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const Vec v = vload(x + i);
        total = fma(v, v, total);
    }
    if (i < n) {
        const Vec v = vload_n(x + i, static_cast<int>(n - i));
        total = fma(v, v, total);
    }
    return 1.f / root(sum(total) / static_cast<float>(n) + eps);
}

// out = x * factor * (weight + offset)
inline void scale_row(float* out, const float* x, float factor, const float* weight, float offset, int64_t n) {
    const Vec f = vset(factor), o = vset(offset);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) vstore(out + i, mul(mul(vload(x + i), f), add(vload(weight + i), o)));
    if (i < n) {
        const int m = static_cast<int>(n - i);
        vstore_n(out + i, mul(mul(vload_n(x + i, m), f), add(vload_n(weight + i, m), o)), m);
    }
}

inline void add_row(float* sum_row, const float* x, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) vstore(sum_row + i, add(vload(sum_row + i), vload(x + i)));
    if (i < n) {
        const int m = static_cast<int>(n - i);
        vstore_n(sum_row + i, add(vload_n(sum_row + i, m), vload_n(x + i, m)), m);
    }
}

void rms_norm(const NormArgs& g, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* x = g.x + r * g.width;
        if (g.residual) {
            add_row(g.residual + r * g.width, x, g.width);
            x = g.residual + r * g.width;
        }
        scale_row(g.out + r * g.width, x, inverse_rms(x, g.width, g.eps), g.weight, g.offset, g.width);
    }
}

void scale(float* out, const float* x, float factor, int64_t n) {
    const Vec f = vset(factor);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) vstore(out + i, mul(vload(x + i), f));
    if (i < n) vstore_n(out + i, mul(vload_n(x + i, static_cast<int>(n - i)), f), static_cast<int>(n - i));
}

void widen(float* out, const char* halves, int64_t n) {
    for (int64_t i = 0; i < n; i += W) store(out + i, load_halves(halves + i * 2));
}

// As float16, rounded to nearest; what is too large becomes the largest.
inline void narrow(char* out, const float* x, int n) {
    const Reg most = set1(65504.f), least = set1(-65504.f);
    for (int i = 0; i < n; i += W) {
        const int m = n - i < W ? n - i : W;
        char halves[W * 2];
        store_halves(halves, max(least, min(most, load_n(x + i, m))));
        __builtin_memcpy(out + i * 2, halves, static_cast<std::size_t>(m) * 2);
    }
}

// x / (1 + 2^-y)
inline Vec gate(const Vec& x, const Vec& y) {
    // 2^-y may not leave the range of exp2; a result beyond it is below the smallest normal number.
    return div(x, add(vset(1.f), exp2(min(vset(126.f), sub(vzero(), y)))));
}

inline Vec silu(const Vec& x) { return gate(x, mul(x, vset(LOG2E))); }

// x / 2 * (1 + tanh(y)) = x / (1 + e^-2y), y = sqrt(2 / pi) * (x + 0.044715 x^3)
inline Vec gelu_tanh(const Vec& x) {
    constexpr float a = 2.f * LOG2E * 0.79788456080286536f;
    return gate(x, mul(x, fma(mul(x, x), vset(0.044715f * a), vset(a))));
}

void gated_act(const GatedArgs& g, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float *gate = g.gate_up + r * 2 * g.width, *up = gate + g.width;
        float* out = g.out + r * g.width;
        for (int64_t i = 0; i < g.width; i += 16) {
            const int n = g.width - i < 16 ? static_cast<int>(g.width - i) : 16;
            const Vec x = n == 16 ? vload(gate + i) : vload_n(gate + i, n);
            const Vec y = mul(g.gelu ? gelu_tanh(x) : silu(x), n == 16 ? vload(up + i) : vload_n(up + i, n));
            if (n == 16)
                vstore(out + i, y);
            else
                vstore_n(out + i, y, n);
        }
    }
}

// Half-split rotation of one head: out and x may be the same.
inline void rotate(float* out, const float* x, const float* cos, const float* sin, int half) {
    for (int i = 0; i < half; i += 16) {
        const int n = half - i < 16 ? half - i : 16;
        const Vec a = vload_n(x + i, n), b = vload_n(x + half + i, n), c = vload_n(cos + i, n), s = vload_n(sin + i, n);
        vstore_n(out + i, sub(mul(a, c), mul(b, s)), n);
        vstore_n(out + half + i, add(mul(b, c), mul(a, s)), n);
    }
}

constexpr int MAX_HEAD = 256;  // checked by ops.py

// Zeros for what is not finite.
inline void clean(float* out, const float* x, int n) {
    for (int i = 0; i < n; i += 16) {
        const int m = n - i < 16 ? n - i : 16;
        vstore_n(out + i, finite_or_zero(vload_n(x + i, m)), m);
    }
}

void rope(const RopeArgs& g, int64_t begin, int64_t end) {
    const int d = g.d, half = d / 2;
    const int64_t width = static_cast<int64_t>(g.n_heads + 2 * g.n_kv_heads) * d;
    float head[MAX_HEAD];
    for (int64_t r = begin; r < end; r++) {
        const float* x = g.qkv + r * width;
        const float *cos = g.cos + static_cast<int64_t>(g.positions[r]) * half;
        const float *sin = g.sin + static_cast<int64_t>(g.positions[r]) * half;
        const int64_t page = g.slots[r] / PAGE, offset = g.slots[r] % PAGE;
        float* q = g.q + r * g.n_heads * d;
        for (int h = 0; h < g.n_heads; h++, x += d, q += d) {
            const float* from = x;
            if (g.q_norm) {
                scale_row(q, x, inverse_rms(x, d, g.eps), g.q_norm, g.norm_offset, d);
                from = q;
            }
            rotate(q, from, cos, sin, half);
        }
        for (int h = 0; h < g.n_kv_heads; h++, x += d) {
            const float* from = x;
            if (g.k_norm) {
                scale_row(head, x, inverse_rms(x, d, g.eps), g.k_norm, g.norm_offset, d);
                from = head;
            }
            rotate(head, from, cos, sin, half);
            clean(head, head, d);
            const int64_t at = page * g.page_stride + static_cast<int64_t>(h) * d * PAGE + offset;
            if (g.half) {
                uint16_t halves[MAX_HEAD];
                narrow(reinterpret_cast<char*>(halves), head, d);
                uint16_t* k = static_cast<uint16_t*>(g.k_pages) + at;
                for (int i = 0; i < d; i++) k[i * PAGE] = halves[i];
            } else {
                float* k = static_cast<float*>(g.k_pages) + at;
                for (int i = 0; i < d; i++) k[i * PAGE] = head[i];
            }
        }
        for (int h = 0; h < g.n_kv_heads; h++, x += d) {
            const int64_t at = page * g.page_stride + (static_cast<int64_t>(h) * PAGE + offset) * d;
            if (g.half) {
                clean(head, x, d);
                narrow(static_cast<char*>(g.v_pages) + at * 2, head, d);
            } else {
                clean(static_cast<float*>(g.v_pages) + at, x, d);
            }
        }
    }
}
