#include "thread_pool.h"

#include <pthread.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace wcse {
namespace {

constexpr int kMaxThreads = 1024;

// A worker that keeps a loop waiting this long, and this many times as long as a chunk takes, has lost its core to
// another process. For as long as that lasted the loops that follow do without workers; twice as long each time that it
// happens again soon: what the core would give is then less than what waiting for it costs.
using Clock = std::chrono::steady_clock;
constexpr Clock::duration kStall = std::chrono::milliseconds(1), kMostRest = std::chrono::milliseconds(100);
constexpr int kStallChunks = 4, kMostRests = 8, kSoon = 4;

struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
};

thread_local bool inside_loop = false;

class Pool {
public:
    explicit Pool(int threads) : shares_(static_cast<size_t>(threads)) {
        try {
            for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
        } catch (...) {  // the system has no more threads
            stop();
            throw;
        }
    }
    ~Pool() { stop(); }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    void run(int64_t n, int64_t chunk, const std::function<void(int64_t, int64_t)>& body) {
        const int64_t threads = static_cast<int64_t>(shares_.size());
        for (int64_t i = 0; i < threads; i++) {
            Share& share = shares_[static_cast<size_t>(i)];
            share.next.store(n * i / threads, std::memory_order_relaxed);
            share.end = n * (i + 1) / threads;
        }
        body_ = &body;
        chunk_ = chunk;
        error_ = nullptr;
        const Clock::time_point start = Clock::now();
        if (start < alone_until_) {
            drain(0);
        } else {
            next_epoch(kOpen);
            const int64_t chunks = drain(0);
            await_workers((Clock::now() - start) / std::max<int64_t>(chunks, 1));
        }
        if (error_) std::rethrow_exception(error_);
    }

private:
    // The gate: number of the loop << 17 | open << 16 | workers inside.
    static constexpr uint64_t kInside = 0xffff, kOpen = 1 << 16;
    static uint64_t epoch_of(uint64_t gate) { return gate >> 17; }

    // Every chunk has been taken. Late workers stay out; those inside finish the chunk they are at, and only then may
    // the loop's state be reused.
    void await_workers(Clock::duration chunk) {
        gate_.fetch_and(~kOpen, std::memory_order_relaxed);
        const auto inside = [&] { return (gate_.load(std::memory_order_acquire) & kInside) != 0; };
        for (int spin = 0; spin < 2000; spin++)
            if (!inside()) return;
        const Clock::time_point start = Clock::now();
        while (inside()) std::this_thread::yield();
        const Clock::time_point now = Clock::now();
        const Clock::duration waited = now - start;
        if (waited <= kStall || waited <= kStallChunks * chunk) return;
        rests_ = start - alone_until_ < kSoon * waited ? std::min(2 * rests_, kMostRests) : 1;
        alone_until_ = now + std::min(rests_ * waited, kMostRest);
    }

    void next_epoch(uint64_t open) {
        if (sleepers_.load(std::memory_order_relaxed) > 0) leave_this_core();
        {
            // Under the lock, or a worker could miss it between its last look and its sleep.
            std::lock_guard<std::mutex> lock(mutex_);
            const uint64_t epoch = epoch_of(gate_.load(std::memory_order_relaxed)) + 1;
            gate_.store(epoch << 17 | open, std::memory_order_release);
        }
        wake_.notify_all();
    }

    void stop() {
        stop_.store(true, std::memory_order_relaxed);
        next_epoch(0);
        for (auto& worker : workers_) worker.join();
    }

    // Linux often wakes a thread on the core of the one that wakes it, where a worker waits until the loop is over.
    // Before they are woken the workers are kept off this core; the system chooses among the others.
    void leave_this_core() {
#ifdef __linux__
        cpu_set_t cores;
        const int mine = sched_getcpu();
        if (mine < 0 || sched_getaffinity(0, sizeof cores, &cores) != 0) return;
        if (CPU_COUNT(&cores) > 1 && mine < CPU_SETSIZE) CPU_CLR(mine, &cores);
        if (placed_ && CPU_EQUAL(&cores, &worker_cores_)) return;
        for (auto& worker : workers_) pthread_setaffinity_np(worker.native_handle(), sizeof cores, &cores);
        worker_cores_ = cores;
        placed_ = true;
#endif
    }

    // Returns the number of chunks that this thread ran.
    int64_t drain(int self) {
        inside_loop = true;
        int64_t chunks = 0;
        const size_t threads = shares_.size();
        for (size_t i = 0; i < threads; i++) {
            Share& share = shares_[(static_cast<size_t>(self) + i) % threads];
            for (;;) {
                const int64_t begin = share.next.fetch_add(chunk_, std::memory_order_relaxed);
                if (begin >= share.end) break;
                chunks++;
                try {
                    (*body_)(begin, std::min(begin + chunk_, share.end));
                } catch (...) {
                    std::lock_guard<std::mutex> lock(mutex_);
                    if (!error_) error_ = std::current_exception();
                }
            }
        }
        inside_loop = false;
        return chunks;
    }

    uint64_t await_epoch_after(uint64_t seen) {
        const auto changed = [&] { return epoch_of(gate_.load(std::memory_order_acquire)) != seen; };
        for (int spin = 0; spin < 4000 && !changed(); spin++)
            if (spin % 64 == 63) std::this_thread::yield();
        if (!changed()) {
            std::unique_lock<std::mutex> lock(mutex_);
            sleepers_.fetch_add(1, std::memory_order_relaxed);
            wake_.wait(lock, changed);
            sleepers_.fetch_sub(1, std::memory_order_relaxed);
        }
        return gate_.load(std::memory_order_acquire);
    }

    void work(int self) {
        uint64_t seen = 0;
        for (;;) {
            uint64_t gate = await_epoch_after(seen);
            if (stop_.load(std::memory_order_relaxed)) return;
            seen = epoch_of(gate);
            while ((gate & kOpen) != 0 && epoch_of(gate) == seen) {
                if (!gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire)) continue;
                drain(self);
                gate_.fetch_sub(1, std::memory_order_release);
                break;
            }
        }
    }

    std::vector<Share> shares_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> gate_{0};
    std::atomic<bool> stop_{false};
    std::atomic<int> sleepers_{0};
    Clock::time_point alone_until_{};
    int rests_ = 1;
#ifdef __linux__
    cpu_set_t worker_cores_;
    bool placed_ = false;
#endif
    const std::function<void(int64_t, int64_t)>* body_ = nullptr;
    int64_t chunk_ = 1;
    std::exception_ptr error_;
};

std::mutex pool_mutex;  // held for the length of a loop
std::unique_ptr<Pool> pool;
std::atomic<int> pool_size{1};

// A forked child has none of the workers and may have been born during a loop: it forgets the pool.
void forget_pool() {
    static_cast<void>(pool.release());
    new (&pool_mutex) std::mutex;
    pool_size.store(1, std::memory_order_relaxed);
    inside_loop = false;
}

}  // namespace

void parallel_for(int64_t n, int64_t chunk, const std::function<void(int64_t, int64_t)>& body) {
    if (n <= 0) return;
    chunk = std::max<int64_t>(chunk, 1);
    if (inside_loop || n <= chunk || num_threads() == 1) return body(0, n);
    std::lock_guard<std::mutex> lock(pool_mutex);
    if (!pool) return body(0, n);
    pool->run(n, chunk, body);
}

int num_threads() { return pool_size.load(std::memory_order_relaxed); }

void set_num_threads(int n) {
    if (n < 1 || n > kMaxThreads)
        throw std::invalid_argument("num_threads is " + std::to_string(n) + ", must be between 1 and " +
                                    std::to_string(kMaxThreads));
    static const int fork_handler = pthread_atfork(nullptr, nullptr, forget_pool);
    if (fork_handler != 0) throw std::runtime_error("cannot register a fork handler");
    std::lock_guard<std::mutex> lock(pool_mutex);
    if (num_threads() == n) return;
    pool.reset();
    pool_size.store(1, std::memory_order_relaxed);
    if (n > 1) pool = std::make_unique<Pool>(n);
    pool_size.store(n, std::memory_order_relaxed);
}

}  // namespace wcse
