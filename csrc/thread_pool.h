// A small pool for parallel loops. The calling thread works too. Each thread owns an equal share of the
// iterations and takes them in chunks; one that runs dry takes chunks from the others. A loop waits only for
// chunks that were begun, so a sleeping worker costs nothing and a stalled one delays it by one chunk at most;
// after a long stall (another process has the core) loops do without workers for a while. Workers sleep between
// loops after a short spin, and on Linux are woken on other cores than the caller's.
#pragma once
#include <cstdint>
#include <functional>

namespace wcse {

// Runs body(begin, end) over disjoint chunks of at most `chunk` iterations that cover [0, n); returns when all
// are done. The first exception in body is rethrown here, after the other chunks have run. A nested call, and
// one on a pool of one thread, runs body(0, n) inline. One loop runs at a time: another caller thread waits.
void parallel_for(int64_t n, int64_t chunk, const std::function<void(int64_t, int64_t)>& body);

// Number of threads that take part in a loop, the caller included (>= 1). A forked child starts with 1.
int num_threads();

// Throws std::invalid_argument unless 1 <= n <= 1024. Must not be called from a loop's body.
void set_num_threads(int n);

}  // namespace wcse
