// The errors that are thrown: the caller is wrong, or CUDA failed. Running out of blocks is a value, not an error.
#pragma once

#include <concepts>
#include <cstdio>
#include <exception>
#include <new>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

#include "pagedkv/core/config.hpp"

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

template <class Exception>
[[noreturn]] void raise([[maybe_unused]] const std::string& message) {
#ifdef PAGEDKV_NO_EXCEPTIONS
  PAGEDKV_FAIL(message.c_str());
#else
  throw Exception(message);
#endif
}

[[noreturn]] inline void raise_bad_alloc() {
#ifdef PAGEDKV_NO_EXCEPTIONS
  PAGEDKV_FAIL("out of memory");
#else
  throw std::bad_alloc();
#endif
}

/// Calls f(); if that throws, calls undo() and throws on.
template <class Function, class Undo>
void undo_on_failure(Function&& f, [[maybe_unused]] Undo&& undo) {
#ifdef PAGEDKV_NO_EXCEPTIONS
  f();
#else
  try {
    f();
  } catch (...) {
    undo();
    throw;
  }
#endif
}

/// Calls f(); returns what it throws, or null.
template <class Function>
std::exception_ptr exception_of(Function&& f) {
#ifdef PAGEDKV_NO_EXCEPTIONS
  f();
#else
  try {
    f();
  } catch (...) {
    return std::current_exception();
  }
#endif
  return nullptr;
}

/// Calls f(); returns what an Exception that it throws says, or nothing.
template <class Exception, class Function>
std::string message_of(Function&& f) {
#ifdef PAGEDKV_NO_EXCEPTIONS
  f();
#else
  try {
    f();
  } catch (const Exception& exception) {
    return exception.what();
  }
#endif
  return {};
}

// Apart and never inlined, so that a check costs a compare and a branch.
template <class Expected, class Got>
[[noreturn, gnu::cold, gnu::noinline]] void fail(std::string_view what, const Expected& expected, const Got& got,
                                                 const std::source_location& location) {
  raise<InvalidArgument>(std::string(what) + " " + describe(expected) + " expected, " + describe(got) + " given" +
                         where(location));
}

}  // namespace detail

/// Throws InvalidArgument "<what> <expected> expected, <got> given (file:line)" unless `condition` holds.
/// `expected` and `got` are text, numbers or bools, e.g. require(d == 128, "problem.kv: head_dim", 128, d).
template <class Expected, class Got>
[[gnu::always_inline]] inline void require(bool condition, std::string_view what, const Expected& expected,
                                           const Got& got,
                                           const std::source_location location = std::source_location::current()) {
  if (!condition) [[unlikely]]
    detail::fail(what, expected, got, location);
}

}  // namespace v0
}  // namespace pagedkv
