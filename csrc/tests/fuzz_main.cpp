// kv_tree_fuzz [seed] [operations]: the fuzzer as a program, for sanitizers and long campaigns.
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "kv_tree_fuzz.h"

int main(int argc, char** argv) {
    const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
    const int64_t operations = argc > 2 ? std::strtoll(argv[2], nullptr, 10) : 1000000;
    try {
        const wcse::FuzzReport report = wcse::fuzz_kv_tree(seed, operations);
        std::printf("seed %llu: %lld operations on %lld trees, %lld refused, %lld out of pages, %lld pages evicted, "
                    "%lld tokens matched, no difference\n",
                    static_cast<unsigned long long>(seed), static_cast<long long>(report.operations),
                    static_cast<long long>(report.trees), static_cast<long long>(report.refused),
                    static_cast<long long>(report.exhausted), static_cast<long long>(report.evicted_pages),
                    static_cast<long long>(report.matched_tokens));
        return 0;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
}
