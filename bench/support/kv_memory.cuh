// The K and V that all decode benchmarks read: one large allocation of random numbers, seen through each case's layout.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <typeinfo>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/storage/kv_layout.hpp"
#include "pagedkv/storage/kv_view.hpp"

namespace bench {

using pagedkv::cuda::check;

namespace detail {

/// Normal numbers, mean 0 and deviation 1: zeros draw less power and run faster than data do. Fills 2 * num_pairs
/// elements.
template <class T>
__global__ void fill_normal_kernel(T* data, std::int64_t num_pairs, std::uint64_t seed) {
  const std::int64_t num_threads = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < num_pairs; i += num_threads) {
    std::uint64_t bits = static_cast<std::uint64_t>(i) * 0x9e3779b97f4a7c15u + seed;  // SplitMix64
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    bits ^= bits >> 31;
    const float radius = sqrtf(-2.f * __logf((static_cast<float>(bits >> 40) + 1.f) * 0x1p-24f));  // Box and Muller
    float sine, cosine;
    __sincosf(static_cast<float>(bits & 0xffffff) * (6.2831853f * 0x1p-24f) - 3.1415927f, &sine, &cosine);
    data[2 * i] = pagedkv::from_float<T>(radius * sine);
    data[2 * i + 1] = pagedkv::from_float<T>(radius * cosine);
  }
}

}  // namespace detail

/// An even number of elements.
template <class T>
void fill_normal(T* data, std::size_t size, std::uint64_t seed) {
  detail::fill_normal_kernel<<<2048, 256>>>(data, static_cast<std::int64_t>(size / 2), seed);
  check(cudaGetLastError(), "fill_normal");
  check(cudaDeviceSynchronize(), "fill_normal");
}

/// 16 GiB of K and 16 GiB of V, or what a smaller GPU has; 16-bit elements of the type last asked for.
class KvMemory {
 public:
  static KvMemory& instance() {
    static KvMemory memory;
    return memory;
  }

  std::int64_t size_bytes() const { return static_cast<std::int64_t>(words_.size_bytes()); }
  const uint4* data() const { return words_.data(); }  // finite numbers of either type

  /// As many blocks as fit. Fills everything anew where the elements were of another type.
  template <class Element>
  pagedkv::KvView<const Element, pagedkv::Space::device> view(pagedkv::KvLayout layout) {
    if (*elements_ != typeid(Element)) fill<Element>();
    const auto size = static_cast<std::int64_t>(words_.size_bytes() / sizeof(Element));
    layout.num_blocks = size / 2 / (std::int64_t{layout.kv_heads} * layout.block_size * layout.head_dim);
    const auto* const k = reinterpret_cast<const Element*>(words_.data());
    return {.k = pagedkv::block_view<pagedkv::Space::device>(k, layout, layout.head_dim),
            .v = pagedkv::block_view<pagedkv::Space::device>(k + size / 2, layout, layout.head_dim)};
  }

 private:
  static constexpr std::size_t wanted_bytes = std::size_t{32} << 30;

  KvMemory() : words_(size_that_fits() / sizeof(uint4)) { fill<pagedkv::bf16>(); }

  template <class Element>
  void fill() {
    static_assert(sizeof(Element) == 2);
    fill_normal(reinterpret_cast<Element*>(words_.data()), words_.size_bytes() / sizeof(Element), 1);
    elements_ = &typeid(Element);
  }

  static std::size_t size_that_fits() {
    std::size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "KvMemory");
    const std::size_t fitting = free_bytes / 4 * 3;  // the rest: queries, outputs, tables, partials
    return std::min(wanted_bytes, fitting) >> 21 << 21;
  }

  pagedkv::cuda::DeviceArray<uint4> words_;
  const std::type_info* elements_ = nullptr;
};

}  // namespace bench
