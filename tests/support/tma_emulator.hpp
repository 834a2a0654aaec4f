// lift_box() and for_each_element(): what TMA does with a box, by the text of the PTX ISA ("tiled mode", "swizzling
// modes"), on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "pagedkv/cuda/tensor_map.hpp"

namespace pagedkv_test {

/// Calls f(global, shared) with the addresses of each element of the box of `tensor` at coordinates `at`, `global` null
/// where the element lies outside the tensor; knows nothing of BoxedTile. The swizzle is one of addresses: chunks of 16
/// bytes change places by the number of their 128 bytes.
template <class F>
void for_each_element(const void* shared, const pagedkv::cuda::BoxedTensor& tensor, const int (&at)[5], F&& f) {
  const std::uint32_t row_bytes = 2 * tensor.box[0];
  const std::uintptr_t mask = row_bytes == 128 ? 7 : row_bytes == 64 ? 3 : row_bytes == 32 ? 1 : 0;
  if (reinterpret_cast<std::uintptr_t>(shared) % 128 != 0) throw std::logic_error("a box is not aligned to 128 bytes");

  std::uint32_t i[5];
  auto place = reinterpret_cast<std::uintptr_t>(shared);
  for (i[4] = 0; i[4] < tensor.box[4]; ++i[4])
    for (i[3] = 0; i[3] < tensor.box[3]; ++i[3])
      for (i[2] = 0; i[2] < tensor.box[2]; ++i[2])
        for (i[1] = 0; i[1] < tensor.box[1]; ++i[1])
          for (i[0] = 0; i[0] < tensor.box[0]; ++i[0], place += 2) {
            const std::byte* global = static_cast<const std::byte*>(tensor.data);
            bool inside = true;
            for (std::size_t axis = 0; axis < 5; ++axis) {
              const std::int64_t index = std::int64_t{at[axis]} + i[axis];
              inside &= index >= 0 && index < static_cast<std::int64_t>(tensor.extents[axis]);
              if (inside) global += index * static_cast<std::int64_t>(axis == 0 ? 2 : tensor.strides_bytes[axis - 1]);
            }
            f(inside ? global : nullptr, place ^ (place >> 7 & mask) << 4);
          }
}

/// Copies a box to `shared`, elements outside the tensor as zeros.
inline void lift_box(void* shared, const pagedkv::cuda::BoxedTensor& tensor, const int (&at)[5]) {
  for_each_element(shared, tensor, at, [](const void* global, std::uintptr_t place) {
    if (global != nullptr)
      std::memcpy(reinterpret_cast<void*>(place), global, 2);
    else
      std::memset(reinterpret_cast<void*>(place), 0, 2);
  });
}

/// Bytes that a box reports to its barrier.
inline unsigned box_bytes(const pagedkv::cuda::BoxedTensor& tensor) {
  unsigned bytes = 2;
  for (const std::uint32_t extent : tensor.box) bytes *= extent;
  return bytes;
}

}  // namespace pagedkv_test
