// A small pool for parallel loops. The calling thread works too. Each worker owns an equal share of the
// iterations and takes them in chunks; one that runs dry steals chunks from the others, so a stalled core
// delays a loop by one chunk at most. Workers sleep between loops after a short spin.
#pragma once
#include <cstdint>
#include <functional>

namespace wcse {

// Runs body(begin, end) over disjoint chunks that cover [0, n); returns when all are done.
// An exception in body is rethrown here after the loop has drained. Not re-entrant: a nested call runs inline.
void parallel_for(int64_t n, int64_t chunk, const std::function<void(int64_t, int64_t)>& body);

// Number of threads that take part in a loop, the caller included (>= 1).
int num_threads();
void set_num_threads(int n);

}  // namespace wcse
