// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once
#include <array>
#include <cstdint>

namespace wcse::cpu {

inline std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, uint64_t key) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
        c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(b),
             static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(a)};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// A multiple of 2^-24 in [0, 1): the first word of block (counter, 0, 0, 0).
inline double uniform(uint64_t key, uint32_t counter) {
    return static_cast<double>(philox({counter, 0, 0, 0}, key)[0] >> 8) * 0x1p-24;
}

}  // namespace wcse::cpu
