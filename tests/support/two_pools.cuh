// One pool on both sides of the bus, equal at first, and new rows likewise: what a step does there must leave equal bytes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/storage/kv_layout.hpp"
#include "pagedkv/storage/kv_pool.hpp"
#include "support/device_problem.cuh"
#include "support/random.hpp"

namespace pagedkv_test {

/// Fills with random bits (NaN among them).
inline void fill_random(void* data, std::size_t size_bytes, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::uint16_t> bits(size_bytes / sizeof(std::uint16_t));
  for (std::uint16_t& x : bits) x = static_cast<std::uint16_t>(random.next());
  std::memcpy(data, bits.data(), size_bytes / sizeof(std::uint16_t) * sizeof(std::uint16_t));
}

template <class T>
struct TwoPools {
  explicit TwoPools(const pagedkv::KvLayout& layout) : host(layout), device(layout) {
    fill_random(elements(), host.size_bytes(), 1);
    pagedkv::cuda::check(
        cudaMemcpy(device.layers().first.k.data, elements(), host.size_bytes(), cudaMemcpyHostToDevice), "fill");
  }

  T* elements() { return host.layers().first.k.data; }

  bool equal() {
    std::vector<std::byte> from_device(host.size_bytes());
    pagedkv::cuda::check(cudaDeviceSynchronize(), "compare");
    pagedkv::cuda::check(
        cudaMemcpy(from_device.data(), device.layers().first.k.data, host.size_bytes(), cudaMemcpyDeviceToHost),
        "compare");
    return std::memcmp(from_device.data(), elements(), host.size_bytes()) == 0;
  }

  pagedkv::KvPool<T> host;
  pagedkv::cuda::KvPool<T> device;
};

/// New rows of K and V on both sides.
template <class X>
struct Rows {
  Rows(int num_rows, int kv_heads, int dim, std::uint64_t seed)
      : extents{num_rows, kv_heads, dim}, host(static_cast<std::size_t>(num_rows * kv_heads * dim)) {
    Random random(seed);
    for (X& x : host) x = pagedkv::from_float<X>(random.real(4.f));
    device.emplace(to_device(host));
  }

  pagedkv::View<const X, 3> on_host() const { return pagedkv::dense_view(host.data(), extents); }
  pagedkv::View<const X, 3, pagedkv::Space::device> on_device() const {
    return pagedkv::dense_view<pagedkv::Space::device>(static_cast<const X*>(device->data()), extents);
  }

  std::int64_t extents[3];
  std::vector<X> host;
  std::optional<pagedkv::cuda::DeviceArray<X>> device;
};

}  // namespace pagedkv_test
