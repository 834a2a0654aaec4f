// ApiError: why a request gets no answer, as HTTP and OpenAI's clients want to be told.
#pragma once

#include <string>
#include <utility>

#include "pagedkv/core/error.hpp"

namespace engine::server {

class ApiError : public pagedkv::Error {
 public:
  /// `param`: the field that is to blame, if one is. `code`: a word for programs, if there is one.
  ApiError(int status, const std::string& message, std::string param = "", std::string code = "")
      : Error(message), status_(status), param_(std::move(param)), code_(std::move(code)) {}

  int status() const { return status_; }
  const std::string& param() const { return param_; }
  const std::string& code() const { return code_; }

  /// OpenAI's name for the kind of error.
  const char* type() const {
    switch (status_) {
      case 401:
        return "authentication_error";
      case 429:
        return "rate_limit_error";
      case 500:
        return "server_error";
      case 503:
        return "service_unavailable_error";
      default:
        return "invalid_request_error";
    }
  }

 private:
  int status_;
  std::string param_;
  std::string code_;
};

}  // namespace engine::server
