// The errors that are thrown: the caller is wrong, or CUDA failed. Running out of blocks is a value, not an error.
#pragma once

#include <concepts>
#include <cstdio>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pagedkv {
inline namespace v0 {

/// Base of everything this library throws.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller broke a stated precondition; nothing has changed.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// A CUDA call failed.
class CudaError : public Error {
 public:
  using Error::Error;
};

namespace detail {

inline std::string describe(std::string_view text) { return std::string(text); }
inline std::string describe(const char* text) { return text; }
inline std::string describe(bool value) { return value ? "true" : "false"; }
inline std::string describe(std::integral auto value) { return std::to_string(value); }
inline std::string describe(std::floating_point auto value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", static_cast<double>(value));  // to_string prints 1e-10 as 0.000000
  return text;
}

inline std::string where(const std::source_location& location) {
  std::string_view file = location.file_name();
  if (const auto slash = file.rfind('/'); slash != std::string_view::npos) file.remove_prefix(slash + 1);
  return " (" + std::string(file) + ":" + std::to_string(location.line()) + ")";
}

}  // namespace detail

/// Throws InvalidArgument "<what> <expected> expected, <got> given (file:line)" unless `condition` holds.
/// `expected` and `got` are text, numbers or bools, e.g. require(d == 128, "problem.kv: head_dim", 128, d).
template <class Expected, class Got>
void require(bool condition, std::string_view what, const Expected& expected, const Got& got,
             const std::source_location location = std::source_location::current()) {
  if (condition) [[likely]]
    return;
  throw InvalidArgument(std::string(what) + " " + detail::describe(expected) + " expected, " + detail::describe(got) +
                        " given" + detail::where(location));
}

}  // namespace v0
}  // namespace pagedkv
