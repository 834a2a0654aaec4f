// Run-time values become compile-time constants here and nowhere else; only what the caller names is compiled.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

#include "pagedkv/core/error.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// The head dimensions a program is built for: decode(HeadDims<64, 128>{}, ...) compiles two kernels.
template <int... Dims>
struct HeadDims {
  static_assert(sizeof...(Dims) >= 1, "HeadDims: name at least one head_dim");
};

/// Calls f(std::integral_constant<int, D>{}) with the named D that equals `head_dim`. Throws InvalidArgument where none
/// does.
template <int... Dims, class F>
void with_head_dim(HeadDims<Dims...>, int head_dim, std::string_view who, F&& f) {
  const bool found = ((head_dim == Dims && (f(std::integral_constant<int, Dims>{}), true)) || ...);
  if (found) return;
  std::string named;
  ((named += (named.empty() ? "" : ", ") + std::to_string(Dims)), ...);
  require(false, std::string(who) + ": head_dim one of those named,", named, head_dim);
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
