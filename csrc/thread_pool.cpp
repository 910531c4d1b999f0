#include "thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

namespace wcse {
namespace {

struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
};

thread_local bool inside_loop = false;

class Pool {
public:
    explicit Pool(int threads) : shares_(threads) {
        for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
    }
    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
            epoch_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }
    int size() const { return static_cast<int>(shares_.size()); }

    void run(int64_t n, int64_t chunk, const std::function<void(int64_t, int64_t)>& body) {
        const int64_t threads = size();
        for (int64_t i = 0; i < threads; i++) {
            shares_[i].next.store(n * i / threads, std::memory_order_relaxed);
            shares_[i].end = n * (i + 1) / threads;
        }
        body_ = &body;
        chunk_ = chunk;
        error_ = nullptr;
        active_.store(static_cast<int>(threads) - 1, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            epoch_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        drain(0);
        // Every worker must leave the loop before its state may be reused.
        for (int spin = 0; active_.load(std::memory_order_acquire) != 0; spin++)
            if (spin > 2000) std::this_thread::yield();
        if (error_) std::rethrow_exception(error_);
    }

private:
    void drain(int self) {
        inside_loop = true;
        const int threads = size();
        for (int i = 0; i < threads; i++) {
            Share& share = shares_[(self + i) % threads];
            for (;;) {
                const int64_t begin = share.next.fetch_add(chunk_, std::memory_order_relaxed);
                if (begin >= share.end) break;
                try {
                    (*body_)(begin, std::min(begin + chunk_, share.end));
                } catch (...) {
                    std::lock_guard<std::mutex> lock(mutex_);
                    if (!error_) error_ = std::current_exception();
                }
            }
        }
        inside_loop = false;
    }
    void work(int self) {
        uint64_t seen = 0;
        for (;;) {
            for (int spin = 0; spin < 4000 && epoch_.load(std::memory_order_acquire) == seen; spin++)
                if (spin % 64 == 63) std::this_thread::yield();
            if (epoch_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
            }
            seen = epoch_.load(std::memory_order_acquire);
            if (stop_) return;
            drain(self);
            active_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::vector<Share> shares_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> epoch_{0};
    std::atomic<int> active_{0};
    const std::function<void(int64_t, int64_t)>* body_ = nullptr;
    int64_t chunk_ = 1;
    std::exception_ptr error_;
    bool stop_ = false;
};

std::mutex pool_mutex;  // one loop at a time; a second caller thread waits
std::unique_ptr<Pool> pool;

}  // namespace

void parallel_for(int64_t n, int64_t chunk, const std::function<void(int64_t, int64_t)>& body) {
    if (n <= 0) return;
    if (chunk < 1) chunk = 1;
    if (inside_loop || n <= chunk) return body(0, n);
    std::lock_guard<std::mutex> lock(pool_mutex);
    if (!pool || pool->size() == 1) return body(0, n);
    pool->run(n, chunk, body);
}

int num_threads() {
    std::lock_guard<std::mutex> lock(pool_mutex);
    return pool ? pool->size() : 1;
}

void set_num_threads(int n) {
    if (n < 1) throw std::invalid_argument("num_threads must be at least 1");
    std::lock_guard<std::mutex> lock(pool_mutex);
    if (!pool || pool->size() != n) pool = std::make_unique<Pool>(n);
}

}  // namespace wcse
