// What a wrong caller gets to read.
#include "pagedkv/core/error.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <type_traits>

using namespace pagedkv;

namespace {

template <class Expected, class Got>
std::string message(const Expected& expected, const Got& got) {
  try {
    require(false, "problem.kv: head_dim", expected, got);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace

TEST_CASE("require is silent when its condition holds") { CHECK_NOTHROW(require(true, "anything", 1, 2)); }

TEST_CASE("require names the thing, what was expected and what was given") {
  CHECK(message(128, 96).starts_with("problem.kv: head_dim 128 expected, 96 given (error_test.cpp:"));
  CHECK(message("at least 1", -3).starts_with("problem.kv: head_dim at least 1 expected, -3 given"));
  CHECK(message(std::string("HND"), std::string("NHD")).starts_with("problem.kv: head_dim HND expected, NHD given"));
  CHECK(message(true, false).starts_with("problem.kv: head_dim true expected, false given"));
}

TEST_CASE("a number too large for 32 bits or too small for six decimals is printed whole") {
  CHECK(message(std::int64_t{1} << 40, 0).find("1099511627776 expected") != std::string::npos);
  CHECK(message(1.5, 1e-10).find("1.5 expected, 1e-10 given") != std::string::npos);
}

TEST_CASE("the message ends with the caller's line") {
  std::string text;
  const int line = __LINE__ + 2;
  try {
    require(false, "x", 1, 2);
  } catch (const Error& error) {
    text = error.what();
  }
  CHECK(text == "x 1 expected, 2 given (error_test.cpp:" + std::to_string(line) + ")");
}

TEST_CASE("one handler catches everything that the library throws") {
  static_assert(std::is_base_of_v<Error, InvalidArgument>);
  static_assert(std::is_base_of_v<Error, CudaError>);
  static_assert(std::is_base_of_v<std::runtime_error, Error>);
}

TEST_CASE("a failed assertion throws in tests, and an assertion that holds does not") {
  CHECK_THROWS_AS(PAGEDKV_ASSERT(1 + 1 == 3), pagedkv_test::AssertionFailed);
  CHECK_NOTHROW(PAGEDKV_ASSERT(1 + 1 == 2));
}
