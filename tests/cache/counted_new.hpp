// operator new for the whole program: counts allocations, and lets one fail where AllocationFailures says so. For one
// file of a program.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

#include "cache/allocation_failures.hpp"

namespace pagedkv_test {

inline long num_allocations = 0;
inline std::size_t largest_allocation = 0;

}  // namespace pagedkv_test

// Not inlined, or GCC takes malloc and operator delete for a mismatched pair. A sanitizer has array forms of its own.
[[gnu::noinline]] void* operator new(std::size_t size) {
  if (pagedkv_test::AllocationFailures::is_due()) throw std::bad_alloc();
  ++pagedkv_test::num_allocations;
  pagedkv_test::largest_allocation = std::max(pagedkv_test::largest_allocation, size);
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new[](std::size_t size) { return operator new(size); }
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
