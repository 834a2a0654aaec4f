// Every macro of the library: its version, the host-device mark, and the internal assertion.
#pragma once

#if __cplusplus < 202002L
#error "pagedkv needs C++20: compile with -std=c++20, also for nvcc"
#endif

#define PAGEDKV_VERSION_MAJOR 0
#define PAGEDKV_VERSION_MINOR 1
#define PAGEDKV_VERSION_PATCH 0

/// Marks a function that host and device compile from one source.
#if defined(__CUDACC__)
#define PAGEDKV_HD __host__ __device__
#else
#define PAGEDKV_HD
#endif

/// Without exceptions (-fno-exceptions, or this macro) a broken precondition ends the program instead: PAGEDKV_FAIL
/// gets the message, a const char*, and may not return. Running out of blocks is a value either way; std:: containers
/// that run out of memory end the program, too.
#if !defined(PAGEDKV_NO_EXCEPTIONS) && !defined(__cpp_exceptions)
#define PAGEDKV_NO_EXCEPTIONS
#endif
#if defined(PAGEDKV_NO_EXCEPTIONS) && !defined(PAGEDKV_FAIL)
#include <cstdlib>
#define PAGEDKV_FAIL(message) std::abort()
#endif

/// Says "if this is false, the library is wrong". Define it before the first include to replace it.
/// By default it is the standard assert; under NDEBUG it is compiled (so its variables count as used) but never run.
#ifndef PAGEDKV_ASSERT
#ifdef NDEBUG
#define PAGEDKV_ASSERT(condition) static_cast<void>(true || (condition))
#else
#include <cassert>
#define PAGEDKV_ASSERT(condition) assert(condition)
#endif
#endif
