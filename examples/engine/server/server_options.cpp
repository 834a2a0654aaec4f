// parse_server_options: the flags of `pagedkv_server`, beside those that every program around the engine has.
#include "engine/server/server_options.hpp"

#include <CLI/CLI.hpp>
#include <cstdlib>

#include "engine/bad_input.hpp"

namespace engine::server {

ServerOptions parse_server_options(int argc, const char* const* argv) {
  ServerOptions options;
  HttpOptions& http = options.http;
  int body_limit = static_cast<int>(http.body_limit), grace = static_cast<int>(options.grace.count());
  int heartbeat = static_cast<int>(std::chrono::duration_cast<std::chrono::seconds>(http.heartbeat).count());
  if (const char* key = std::getenv("PAGEDKV_API_KEY")) http.api_key = key;  // other users see a command line

  CLI::App app("Serves a model in a Hugging Face folder through OpenAI's completions and chat completions.",
               "pagedkv_server");
  const auto show = [](CLI::Option* option) { option->capture_default_str(); };
  show(app.add_option("--host", http.host, "Address to listen at; 0.0.0.0: every one of this machine"));
  show(app.add_option("--port", http.port, "0: any that is free; it is printed"));
  app.add_option("--api-key", http.api_key, "That clients must show; also taken from PAGEDKV_API_KEY");
  app.add_option("--served-name", options.model_name, "Of the model, in requests")->default_str("the folder's");
  show(app.add_option("--max-queue", options.service.max_queue, "Requests that may wait; more are refused (429)"));
  show(app.add_option("--body-limit", body_limit, "Bytes of a request at most"));
  show(app.add_option("--grace", grace, "Seconds that requests have to finish at the end"));
  show(app.add_option("--heartbeat", heartbeat, "Seconds until a silent stream gets a comment; 0: none"));
  add_engine_flags(app, options.engine);
  options.help = parse_command_line(app, argc, argv);
  if (!options.help.empty()) return options;

  check_range("port", http.port, 0, 65535);
  check_range("max-queue", options.service.max_queue, 1, 4096);  // a thread each
  check_range("body-limit", body_limit, 1, 1 << 30);
  check_range("grace", grace, 0, 3600);
  check_range("heartbeat", heartbeat, 0, 3600);
  http.body_limit = static_cast<std::size_t>(body_limit);
  http.max_connections = options.service.max_queue + options.engine.max_seqs.value_or(256) + 32;
  http.heartbeat = std::chrono::seconds(heartbeat);
  options.grace = std::chrono::seconds(grace);
  if (options.model_name.empty())
    options.model_name = std::filesystem::absolute(options.engine.model / ".").parent_path().filename().string();
  return options;
}

}  // namespace engine::server
