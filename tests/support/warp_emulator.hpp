// Lets the source of a kernel run on the host: CUDA's words and the instructions of cuda/ptx, lane by lane.
//
// Include it before the kernel. The instructions follow the text of the PTX ISA and know nothing of the library's own
// maps; a cp.async is late until it is waited for; misaligned copies throw; bank conflicts of ldmatrix are counted.
// This finds wrong maps, missing barriers and waits; it cannot find races, because lanes run in turns.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "pagedkv/core/dtype.hpp"
#include "support/cta_emulator.hpp"

#define __device__
#define __global__
#if !defined(__shared__)  // hopper_emulator.hpp gives each host thread its own
#define __shared__
#endif
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define threadIdx (::pagedkv_test::thread_index())
#define blockIdx (::pagedkv_test::emulated_cta)
#define gridDim (::pagedkv_test::emulated_grid)

namespace pagedkv_test {

struct Index {
  unsigned x, y = 0, z = 0;
};
inline thread_local CtaEmulator emulator;
inline thread_local Index emulated_cta{0}, emulated_grid{1};
inline Index thread_index() { return {emulator.thread()}; }
inline std::size_t lane_index() { return emulator.thread() % 32; }

/// How often a thread has waited for the kernel in front.
inline long waits = 0;

/// Passes of shared memory beyond the first that ldmatrix has needed: eight rows of 16 bytes want eight groups of
/// banks.
inline long bank_conflicts = 0;

inline void count_bank_conflicts(const std::array<const void*, 32>& rows, std::size_t matrix) {
  std::array<int, 8> uses{};
  for (std::size_t row = 0; row < 8; ++row) {
    const auto address = reinterpret_cast<std::uintptr_t>(rows[8 * matrix + row]);
    if (address % 16 != 0) throw std::logic_error("ldmatrix: a row is not aligned to 16 bytes");
    if (++uses[address / 16 % 8] > 1) ++bank_conflicts;
  }
}

/// Element (row, column) of 8x8 matrix `matrix`, whose rows lanes 8 * matrix .. 8 * matrix + 7 point at.
inline std::uint32_t element(const std::array<const void*, 32>& rows, std::size_t matrix, std::size_t row,
                             std::size_t column) {
  std::uint16_t bits;
  std::memcpy(&bits, static_cast<const std::byte*>(rows[8 * matrix + row]) + 2 * column, 2);
  return bits;
}

/// One 16-bit half of a lane's registers, as a float.
template <class T, std::size_t N>
float half(const std::array<std::uint32_t, N>& registers, std::size_t index) {
  return pagedkv::to_float(T{static_cast<std::uint16_t>(registers[index / 2] >> (16 * (index % 2)))});
}

}  // namespace pagedkv_test

inline void __syncthreads() { pagedkv_test::emulator.synchronize(); }

inline unsigned __ballot_sync(unsigned, bool mine) {
  const auto all = pagedkv_test::emulator.exchange(mine);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(all[lane]) << lane;
  return bits;
}

template <class T>
T __shfl_sync(unsigned, T mine, int lane) {
  return pagedkv_test::emulator.exchange(mine)[static_cast<std::size_t>(lane) % 32];
}

/// Lanes that nobody stands below keep their own.
template <class T>
T __shfl_up_sync(unsigned, T mine, int distance) {
  const auto all = pagedkv_test::emulator.exchange(mine);
  const std::size_t lane = pagedkv_test::lane_index(), step = static_cast<std::size_t>(distance);
  return lane < step ? mine : all[lane - step];
}

inline bool __any_sync(unsigned mask, bool mine) { return __ballot_sync(mask, mine) != 0; }
inline void __syncwarp() { pagedkv_test::emulator.synchronize_warp(); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

// CTAs take turns: nothing is under way between them, and what a thread does between two waits nobody interrupts.
inline void __threadfence() {}
inline unsigned atomicInc(unsigned* counter, unsigned last) {
  const unsigned old = *counter;
  *counter = old >= last ? 0 : old + 1;
  return old;
}
inline unsigned atomicAdd(unsigned* counter, unsigned more) { return std::exchange(*counter, *counter + more); }

template <class T>
T __shfl_xor_sync(unsigned, T mine, int mask) {
  return pagedkv_test::emulator.exchange(mine)[pagedkv_test::lane_index() ^ static_cast<std::size_t>(mask)];
}

namespace pagedkv {
inline namespace v0 {
namespace ptx {

inline void launch_dependents() {}  // one kernel at a time: there is none to let go, none to wait for
inline void wait_for_previous_kernel() { ++pagedkv_test::waits; }

inline void cp_async_16(void* shared, const void* global, bool live) {
  pagedkv_test::emulator.start_copy(shared, live ? global : nullptr);
}
inline void cp_async_commit() { pagedkv_test::emulator.commit_copies(); }
template <int Pending>
void cp_async_wait() {
  pagedkv_test::emulator.wait_for_copies(Pending);
}

inline void ldmatrix_x4(std::uint32_t (&registers)[4], const void* shared_row) {
  const auto rows = pagedkv_test::emulator.exchange(shared_row);
  const std::size_t lane = pagedkv_test::lane_index(), row = lane / 4, column = 2 * (lane % 4);
  if (lane == 0)
    for (std::size_t m = 0; m < 4; ++m) pagedkv_test::count_bank_conflicts(rows, m);
  for (std::size_t m = 0; m < 4; ++m)
    registers[m] = pagedkv_test::element(rows, m, row, column) | pagedkv_test::element(rows, m, row, column + 1) << 16;
}

inline void ldmatrix_x4_transposed(std::uint32_t (&registers)[4], const void* shared_row) {
  const auto rows = pagedkv_test::emulator.exchange(shared_row);
  const std::size_t lane = pagedkv_test::lane_index(), row = lane / 4, column = 2 * (lane % 4);
  if (lane == 0)
    for (std::size_t m = 0; m < 4; ++m) pagedkv_test::count_bank_conflicts(rows, m);
  for (std::size_t m = 0; m < 4; ++m)
    registers[m] = pagedkv_test::element(rows, m, column, row) | pagedkv_test::element(rows, m, column + 1, row) << 16;
}

/// With groupID = lane >> 2 and threadID = lane % 4 the ISA says: a_i stands in row groupID (i = 0, 1, 4, 5) or groupID
/// + 8, column 2 threadID + (i & 1), + 8 from i = 4 on; b_i in row 2 threadID + (i & 1), + 8 from i = 2 on, column
/// groupID; c_i in row groupID, + 8 from i = 2 on, column 2 threadID + (i & 1).
template <class T>
void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  const auto all = pagedkv_test::emulator.exchange(std::array<std::uint32_t, 6>{a[0], a[1], a[2], a[3], b0, b1});
  const auto a_at = [&](std::size_t row, std::size_t k) {
    return pagedkv_test::half<T>(all[row % 8 * 4 + k % 8 / 2], k % 2 + (row >= 8 ? 2u : 0u) + (k >= 8 ? 4u : 0u));
  };
  const auto b_at = [&](std::size_t k, std::size_t column) {
    return pagedkv_test::half<T>(all[column * 4 + k % 8 / 2], 8 + k % 2 + (k >= 8 ? 2u : 0u));
  };
  const std::size_t group = pagedkv_test::lane_index() / 4, thread = pagedkv_test::lane_index() % 4;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::size_t row = group + (i >= 2 ? 8 : 0), column = 2 * thread + i % 2;
    for (std::size_t k = 0; k < 16; ++k) c[i] += a_at(row, k) * b_at(k, column);
  }
}

/// Row i of the matrix lies in lanes 4 i .. 4 i + 3, two elements each; so does row i of the transposed one.
inline std::uint32_t movmatrix_transposed(std::uint32_t pair) {
  const auto all = pagedkv_test::emulator.exchange(pair);
  const std::size_t row = pagedkv_test::lane_index() / 4, column = 2 * (pagedkv_test::lane_index() % 4);
  const auto at = [&](std::size_t r, std::size_t c) { return all[4 * r + c / 2] >> (16 * (c % 2)) & 0xffffu; };
  return at(column, row) | at(column + 1, row) << 16;
}

inline unsigned increment_wrapping(unsigned& counter, unsigned last) { return atomicInc(&counter, last); }

template <std::size_t N>
void load_past_l1(float (&x)[N], const float* address) {
  std::memcpy(x, address, sizeof(x));
}

/// Looks in vain since this CTA has posted something.
inline thread_local long looks_in_vain = 0;

template <std::size_t N>
void post(float* address, const float (&x)[N]) {
  looks_in_vain = 0;
  std::memcpy(address, x, sizeof(x));
}
template <std::size_t N>
void poll(float (&x)[N], const float* address) {
  std::memcpy(x, address, sizeof(x));
  const bool is_missing = std::ranges::any_of(x, [](float word) { return std::bit_cast<std::uint32_t>(word) == ~0u; });
  if (is_missing && ++looks_in_vain > 5'000'000) throw std::logic_error("a thread waits for words that never come");
  pagedkv_test::emulator.yield_to_other_ctas();
}

template <class T>
std::uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | static_cast<std::uint32_t>(from_float<T>(high).bits) << 16;
}

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
