// The instructions of sm_90 for emulated warps: mbarriers, TMA, warpgroups' products, named barriers. Include it before
// the kernel, in place of support/warp_emulator.hpp.
//
// What is asynchronous is late: until a box has landed NaN lies in its place, until a product is waited for NaN stands
// in the registers that it owns, and it reads shared memory at some time in between (CtaEmulator::shuffle). What the ISA
// leaves undefined throws, where it can be seen; fences between threads and the hardware's own copies cannot.
#pragma once

#if !defined(__shared__)
#define __shared__ __thread  // one for each host thread
#endif

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "support/warp_emulator.hpp"
// The words above must be known by what follows.
#include "pagedkv/cuda/ptx/mbarrier.cuh"
#include "pagedkv/cuda/ptx/tma.cuh"
#include "pagedkv/cuda/tensor_map.hpp"
#include "support/tma_emulator.hpp"
#include "support/wgmma_emulator.hpp"

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace pagedkv_test {

/// The dynamic shared memory of the CTA, of which descriptors know addresses; begins at a multiple of 1024.
inline thread_local std::span<std::byte> emulated_shared;

/// A tensor map for kernels that run here: the tensor itself.
inline pagedkv::ptx::TensorMap tensor_map(const pagedkv::cuda::BoxedTensor& tensor) {
  static_assert(sizeof(tensor) <= sizeof(pagedkv::ptx::TensorMap));
  pagedkv::ptx::TensorMap map{};
  std::memcpy(&map, &tensor, sizeof(tensor));
  return map;
}

inline pagedkv::cuda::BoxedTensor tensor_of(const pagedkv::ptx::TensorMap& map) {
  pagedkv::cuda::BoxedTensor tensor;
  std::memcpy(static_cast<void*>(&tensor), &map, sizeof(tensor));
  return tensor;
}

/// What an mbarrier holds.
struct MbarrierState {
  std::int32_t bytes = 0;  // expected, and not yet landed
  std::uint8_t expected = 0, pending = 0;
  std::uint8_t phase = 0;  // parity of the open one
  std::uint8_t seal = intact;

  static constexpr std::uint8_t intact = 0x5e;

  static MbarrierState of(const pagedkv::ptx::Mbarrier& barrier) {
    const auto state = std::bit_cast<MbarrierState>(barrier.state);
    if (state.seal != intact) throw std::logic_error("mbarrier: used before it is initialised, or overwritten");
    return state;
  }
  void store(pagedkv::ptx::Mbarrier& barrier) {
    if (pending == 0 && bytes == 0) {
      pending = expected;
      phase ^= 1;
    }
    barrier.state = std::bit_cast<std::uint64_t>(*this);
  }
};

/// The products of the warpgroups of a CTA.
class Products {
 public:
  /// Registers of all threads of a warpgroup, and its operands.
  struct Product {
    using Compute = void (*)(Product&);
    std::array<float*, 128> sums{};
    std::array<std::array<std::uint32_t, 4>, 128> a_registers{};
    std::uint64_t a = 0, b = 0;
    bool accumulate = false;
    Compute compute = nullptr;
    int num_threads = 0;  // that have issued it
  };

  void clear() { warpgroups_ = {}; }

  void fence() { mine().fenced = true; }

  /// Of one thread; the product is under way when all threads of the warpgroup have issued it. `registers`: A's, if
  /// they hold it.
  void issue(std::span<float> sums, const std::uint32_t* registers, std::uint64_t a, std::uint64_t b, bool accumulate,
             Product::Compute compute) {
    Warpgroup& warpgroup = mine_all();
    Thread& thread = mine();
    if (!thread.fenced) throw std::logic_error("wgmma: no fence since the last group");
    const std::size_t lane = emulator.thread() % 128;
    const std::int64_t number = thread.issued++;
    const auto place = static_cast<std::size_t>(number - warpgroup.computed);
    if (place == warpgroup.under_way.size()) warpgroup.under_way.emplace_back();
    Product& product = warpgroup.under_way.at(place);
    if (product.num_threads++ == 0) {
      product.a = a;
      product.b = b;
      product.accumulate = accumulate;
      product.compute = compute;
    } else if (product.a != a || product.b != b || product.accumulate != accumulate || product.compute != compute) {
      throw std::logic_error("wgmma: threads of a warpgroup disagree");
    }
    product.sums[lane] = own(thread, sums, number);
    if (registers != nullptr) {
      std::memcpy(product.a_registers[lane].data(), registers, 16);
      thread.operands.push_back({registers, product.a_registers[lane], number});
    }
    if (product.num_threads == 128) {
      emulator.later([&warpgroup] {  // in the order in which they were issued
        Product& next = warpgroup.under_way.front();
        next.compute(next);
        warpgroup.under_way.pop_front();
        ++warpgroup.computed;
      });
    }
  }

  void commit() {
    Thread& thread = mine();
    thread.groups.push_back(thread.issued);
    thread.fenced = false;
  }

  void wait(std::size_t num_groups) {
    Warpgroup& warpgroup = mine_all();
    Thread& thread = mine();
    std::int64_t end = 0;
    for (; thread.groups.size() > num_groups; thread.groups.pop_front()) end = thread.groups.front();
    emulator.wait_until([&] { return warpgroup.computed >= end; });
    for (; !thread.operands.empty() && thread.operands.front().product < end; thread.operands.pop_front()) {
      if (std::memcmp(thread.operands.front().at, thread.operands.front().words.data(), 16) != 0)
        throw std::logic_error("wgmma: an operand was changed while its product was under way");
    }
    std::erase_if(thread.owned, [&](const Owned& owned) {
      if (owned.last >= end) return false;
      for (const float& x : owned.at)
        if (std::bit_cast<std::uint32_t>(x) != poison)
          throw std::logic_error("wgmma: a sum was changed while its product was under way");
      std::memcpy(owned.at.data(), owned.sums.data(), owned.at.size_bytes());
      return true;
    });
    emulator.synchronize_warp();
  }

  /// By a thread that ends.
  void leave() {
    if (emulator.thread() / 128 >= warpgroups_.size()) return;
    if (!mine().owned.empty()) throw std::logic_error("wgmma: a thread ends while its products are under way");
  }

 private:
  static constexpr std::uint32_t poison = 0x7fc0beef;  // a NaN

  struct Owned {
    std::span<float> at;      // registers, poisoned
    std::vector<float> sums;  // what they will hold
    std::int64_t last;        // product into them
  };
  struct Operand {
    const std::uint32_t* at;
    std::array<std::uint32_t, 4> words;
    std::int64_t product;
  };
  struct Thread {
    std::int64_t issued = 0;
    bool fenced = false;
    std::deque<std::int64_t> groups;  // ends, as numbers of products
    std::list<Owned> owned;
    std::deque<Operand> operands;
  };
  struct Warpgroup {
    std::array<Thread, 128> threads;
    std::deque<Product> under_way;
    std::int64_t computed = 0;
  };

  Warpgroup& mine_all() {
    const std::size_t index = emulator.thread() / 128;
    while (warpgroups_.size() <= index) warpgroups_.emplace_back();
    return warpgroups_[index];
  }
  Thread& mine() { return mine_all().threads[emulator.thread() % 128]; }

  static float* own(Thread& thread, std::span<float> registers, std::int64_t product) {
    for (Owned& owned : thread.owned) {
      if (owned.at.data() != registers.data()) continue;
      owned.last = product;
      return owned.sums.data();
    }
    thread.owned.push_back({registers, {registers.begin(), registers.end()}, product});
    for (float& x : registers) x = std::bit_cast<float>(poison);
    return thread.owned.back().sums.data();
  }

  std::deque<Warpgroup> warpgroups_;
};
inline thread_local Products products;

/// Boxes that the threads of a CTA store: read some time after, written some time after that.
class BoxStores {
 public:
  void clear() { threads_ = std::vector<Thread>(1024); }

  void start(const void* shared, const pagedkv::cuda::BoxedTensor& tensor, std::array<int, 5> at) {
    auto& group = mine().open;
    if (!group) group = std::make_shared<Group>();
    ++group->to_read;
    ++group->to_write;
    emulator.later([shared, tensor, at, group = group] {
      std::vector<std::pair<void*, std::uint16_t>> elements;
      for_each_element(shared, tensor, {at[0], at[1], at[2], at[3], at[4]}, [&](const void* to, std::uintptr_t from) {
        if (to == nullptr) throw std::logic_error("a box is stored outside its tensor");
        std::uint16_t bits;
        std::memcpy(&bits, reinterpret_cast<const void*>(from), 2);
        elements.emplace_back(const_cast<void*>(to), bits);
      });
      --group->to_read;
      emulator.later([elements = std::move(elements), group] {
        for (const auto& [to, bits] : elements) std::memcpy(to, &bits, 2);
        --group->to_write;
      });
    });
  }
  void commit() {
    if (mine().open) mine().groups.push_back(std::exchange(mine().open, nullptr));
  }
  void wait_read() {
    emulator.wait_until([&groups = mine().groups] {
      return std::ranges::all_of(groups, [](const auto& group) { return group->to_read == 0; });
    });
  }
  void wait() {
    emulator.wait_until([&groups = mine().groups] {
      return std::ranges::all_of(groups, [](const auto& group) { return group->to_write == 0; });
    });
    mine().groups.clear();
  }

  /// By a thread that ends.
  void leave() {
    if (mine().open || !mine().groups.empty()) throw std::logic_error("a thread ends while its stores are under way");
  }

 private:
  struct Group {
    int to_read = 0, to_write = 0;  // boxes
  };
  struct Thread {
    std::shared_ptr<Group> open;
    std::vector<std::shared_ptr<Group>> groups;
  };

  Thread& mine() { return threads_.at(emulator.thread()); }

  std::vector<Thread> threads_;
};
inline thread_local BoxStores box_stores;

template <class T, std::size_t Registers, bool FromRegisters>
void compute(Products::Product& product) {
  Accumulators<Registers> sums;
  for (std::size_t i = 0; i < 128; ++i) std::memcpy(sums[i].data(), product.sums[i], sizeof(sums[i]));
  const SharedMemory shared = emulated_shared;
  if constexpr (FromRegisters)
    wgmma<T>(sums, product.a_registers, shared, product.b, Major::mn, product.accumulate);
  else
    wgmma<T>(sums, shared, product.a, Major::k, product.b, Major::k, product.accumulate);
  for (std::size_t i = 0; i < 128; ++i) std::memcpy(product.sums[i], sums[i].data(), sizeof(sums[i]));
}

/// Runs a CTA whose dynamic shared memory this is; it begins with NaN in all of it.
inline void run_cta(std::span<unsigned char> shared, int num_threads, const std::function<void()>& body) {
  if (reinterpret_cast<std::uintptr_t>(shared.data()) % 1024 != 0)
    throw std::logic_error("emulated shared memory begins at a multiple of 1024");
  emulated_shared = std::as_writable_bytes(shared);
  std::memset(shared.data(), 0xff, shared.size());
  products.clear();
  box_stores.clear();
  emulator.run(num_threads, [&] {
    body();
    products.leave();
    box_stores.leave();
  });
}

}  // namespace pagedkv_test

inline std::size_t __cvta_generic_to_shared(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) -
         reinterpret_cast<std::uintptr_t>(pagedkv_test::emulated_shared.data());
}

namespace pagedkv {
inline namespace v0 {
namespace ptx {

inline void mbarrier_init(Mbarrier& barrier, unsigned arrivals) {
  if (arrivals < 1 || arrivals > 255) throw std::logic_error("mbarrier: 1 to 255 arrivals are emulated");
  const auto count = static_cast<std::uint8_t>(arrivals);
  pagedkv_test::MbarrierState{.expected = count, .pending = count}.store(barrier);
}
inline void fence_mbarrier_init() {}

inline void mbarrier_arrive_expect_tx(Mbarrier& barrier, unsigned bytes) {
  auto state = pagedkv_test::MbarrierState::of(barrier);
  if (state.pending == 0) throw std::logic_error("mbarrier: more arrivals than the phase expects");
  --state.pending;
  state.bytes += static_cast<int>(bytes);
  state.store(barrier);
}
inline void mbarrier_arrive(Mbarrier& barrier) { mbarrier_arrive_expect_tx(barrier, 0); }

inline void mbarrier_wait(Mbarrier& barrier, unsigned parity) {
  pagedkv_test::emulator.wait_until([&] { return pagedkv_test::MbarrierState::of(barrier).phase != parity; });
}
inline bool mbarrier_try_wait(Mbarrier& barrier, unsigned parity) {
  if (pagedkv_test::MbarrierState::of(barrier).phase == parity) pagedkv_test::emulator.yield();
  return pagedkv_test::MbarrierState::of(barrier).phase != parity;
}

inline void prefetch_tensormap(const TensorMap&) {}
inline std::uint64_t l2_evict_first() { return 0; }
inline void fence_proxy_async() {}

inline void cp_async_bulk_tensor_5d(void* shared, const TensorMap& map, const int (&at)[5], Mbarrier& barrier) {
  const cuda::BoxedTensor tensor = pagedkv_test::tensor_of(map);
  const unsigned bytes = pagedkv_test::box_bytes(tensor);
  std::memset(shared, 0xff, bytes);
  pagedkv_test::emulator.later([shared, tensor, place = std::to_array(at), bytes, &barrier] {
    pagedkv_test::lift_box(shared, tensor, {place[0], place[1], place[2], place[3], place[4]});
    auto state = pagedkv_test::MbarrierState::of(barrier);
    state.bytes -= static_cast<int>(bytes);
    state.store(barrier);
  });
}
inline void cp_async_bulk_tensor_5d(void* shared, const TensorMap& map, const int (&at)[5], Mbarrier& barrier,
                                    std::uint64_t) {
  cp_async_bulk_tensor_5d(shared, map, at, barrier);
}

inline void cp_async_bulk_tensor_5d_store(const TensorMap& map, const int (&at)[5], const void* shared) {
  pagedkv_test::box_stores.start(shared, pagedkv_test::tensor_of(map), std::to_array(at));
}
inline void bulk_store_commit() { pagedkv_test::box_stores.commit(); }
inline void bulk_store_wait_read() { pagedkv_test::box_stores.wait_read(); }
inline void bulk_store_wait() { pagedkv_test::box_stores.wait(); }

/// Register r of a lane holds two elements of row lane / 4 of matrix r, from column 2 (lane % 4) on.
inline void stmatrix_x4(void* shared_row, const std::uint32_t (&registers)[4]) {
  const auto rows = pagedkv_test::emulator.exchange(shared_row);
  const std::size_t lane = pagedkv_test::lane_index();
  std::array<const void*, 32> addresses;
  std::copy(rows.begin(), rows.end(), addresses.begin());
  for (std::size_t m = 0; m < 4; ++m) {
    if (lane == 0) pagedkv_test::count_bank_conflicts(addresses, m);
    std::memcpy(static_cast<std::byte*>(rows[8 * m + lane / 4]) + 4 * (lane % 4), &registers[m], 4);
  }
}

inline void wgmma_fence() { pagedkv_test::products.fence(); }
inline void wgmma_commit() { pagedkv_test::products.commit(); }
template <int Groups>
void wgmma_wait() {
  pagedkv_test::products.wait(Groups);
}
template <class T, int Registers>
void wgmma_shared(float (&d)[Registers], std::uint64_t a, std::uint64_t b, bool accumulate) {
  pagedkv_test::products.issue(d, nullptr, a, b, accumulate, pagedkv_test::compute<T, Registers, false>);
}
template <class T, int Registers>
void wgmma_registers(float (&d)[Registers], const std::uint32_t (&a)[4], std::uint64_t b, bool accumulate) {
  pagedkv_test::products.issue(d, a, 0, b, accumulate, pagedkv_test::compute<T, Registers, true>);
}
template <int Registers>
void hold(float (&)[Registers]) {}
inline void keep_behind(float, std::uint32_t) {}

inline void barrier_sync(int number, int threads) { pagedkv_test::emulator.come_to(number, threads, true); }
inline void barrier_arrive(int number, int threads) { pagedkv_test::emulator.come_to(number, threads, false); }

template <int>
void give_registers() {}
template <int>
void take_registers() {}

}  // namespace ptx
}  // namespace v0
}  // namespace pagedkv
