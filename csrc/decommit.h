// Gives memory back to the system without giving up its addresses.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace wcse {

// The whole system pages within [address, address + bytes) of a private anonymous mapping take no memory until they
// are written again, and then begin as zeros. Elsewhere than on Linux nothing happens: the memory stays committed.
inline void decommit([[maybe_unused]] uintptr_t address, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
    static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);  // advice: may fail
#endif
}

}  // namespace wcse
