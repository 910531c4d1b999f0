// thread_pool_stress [loops]: many short loops from two caller threads, for ThreadSanitizer.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "thread_pool.h"

int main(int argc, char** argv) {
    const int loops = argc > 1 ? std::atoi(argv[1]) : 20000;
    std::atomic<int> wrong{0};
    const auto caller = [&] {
        std::vector<int> visits(257);  // plain ints: a race shows
        for (int i = 0; i < loops; i++) {
            const int64_t n = i % 257;
            visits.assign(visits.size(), 0);
            wcse::parallel_for(n, 1 + i % 5, [&](int64_t begin, int64_t end) {
                for (int64_t j = begin; j < end; j++) visits[static_cast<size_t>(j)]++;
            });
            for (int64_t j = 0; j < n; j++) wrong += visits[static_cast<size_t>(j)] != 1;
            if (i % 1000 == 0) wcse::set_num_threads(1 + i / 1000 % 4);
        }
    };
    wcse::set_num_threads(3);
    std::thread other(caller);
    caller();
    other.join();
    std::printf("%d loops, %d wrong\n", 2 * loops, wrong.load());
    return wrong != 0;
}
