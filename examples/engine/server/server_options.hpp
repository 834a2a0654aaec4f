// ServerOptions: the command line of `pagedkv_server`.
#pragma once

#include <chrono>
#include <string>

#include "engine/flags.hpp"
#include "engine/server/http_server.hpp"
#include "engine/service.hpp"

namespace engine::server {

struct ServerOptions {
  EngineFlags engine;
  HttpOptions http;
  ServiceOptions service;
  std::string model_name;          // that requests must give
  std::chrono::seconds grace{30};  // that requests have to finish once the server was told to end
  std::string help;                // not empty: print this and do nothing
};

/// Throws BadInput on a flag or a value that is not understood.
ServerOptions parse_server_options(int argc, const char* const* argv);

}  // namespace engine::server
