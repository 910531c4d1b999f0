// Memory that a kernel borrows for one task: kept per thread, grown when needed, aligned to cache lines.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <new>

namespace wcse::cpu {

class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    // Makes room for this many bytes in all; whatever was taken before is invalid now.
    void begin(size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        if (bytes > size_) {
            std::free(memory_);
            memory_ = nullptr;
            size_ = 0;
            memory_ = static_cast<char*>(std::aligned_alloc(64, bytes));
            if (!memory_) throw std::bad_alloc();
            size_ = bytes;
        }
        used_ = 0;
    }
    // The next n elements, contents undefined; the padded() sizes of all that is taken add up to begin()'s bytes.
    template <class T>
    T* take(size_t n) {
        T* out = reinterpret_cast<T*>(memory_ + used_);
        used_ += padded<T>(n);
        return out;
    }
    template <class T>
    static size_t padded(size_t n) {
        return (n * sizeof(T) + 63) / 64 * 64;
    }

private:
    char* memory_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

}  // namespace wcse::cpu
