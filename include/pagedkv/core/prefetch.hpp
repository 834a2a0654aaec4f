// prefetch: a hint that memory will be read and written soon.
#pragma once

namespace pagedkv {
inline namespace v0 {
namespace detail {

inline void prefetch([[maybe_unused]] const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address, 1);
#endif
}

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
