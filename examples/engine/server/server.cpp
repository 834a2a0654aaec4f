// pagedkv_server: loads a model, serves it until SIGTERM or SIGINT, and lets those finish that it is serving then.
#include <semaphore.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/server/http_server.hpp"
#include "engine/server/server_options.hpp"
#include "engine/service.hpp"
#include "engine/session.hpp"
#include "engine/text/chat_template.hpp"

namespace {

using namespace engine;
using namespace engine::server;

std::atomic<bool> is_serving = false;
sem_t told_to_end;

void on_signal(int signal) {
  if (!is_serving.exchange(false)) std::_Exit(128 + signal);  // still loading, or told for the second time
  sem_post(&told_to_end);
}

void say(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

ServedModel served_model(const Session& session, const ServerOptions& options) {
  ServedModel model{.name = options.model_name,
                    .config = session.config(),
                    .tokenizer = session.tokenizer(),
                    .max_samples = session.plan().sizes.max_seqs,
                    .has_chat = true,
                    .encode_chat = [&session](const std::vector<ChatMessage>& messages) {
                      return session.chat().encode(session.tokenizer(), messages);
                    }};
  try {
    model.encode_chat({{.role = "user", .content = "?"}});
  } catch (const BadInput&) {
    model.has_chat = false;
  }
  return model;
}

int run(int argc, char** argv) {
  const ServerOptions options = parse_server_options(argc, argv);
  if (!options.help.empty()) {
    say(options.help);
    return 0;
  }
  sem_init(&told_to_end, 0, 0);
  for (const int signal : {SIGTERM, SIGINT}) std::signal(signal, on_signal);

  HttpServer http(options.http);
  say("listening on http://" + options.http.host + ":" + std::to_string(http.port()));
  Session session(options.engine);
  EngineService service(session.engine(), session.tokenizer(), options.service);
  http.open(served_model(session, options), service);
  is_serving = true;
  say("serving " + options.model_name + " on " + session.model().device());

  while (sem_wait(&told_to_end) != 0) continue;  // other signals interrupt it
  say("shutting down");
  http.refuse();
  service.close(options.grace);
  http.close();
  if (const std::string failure = service.stats().failure; !failure.empty()) throw pagedkv::Error(failure);
  session.engine().check_integrity();
  say("bye");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("pagedkv_server: memory: as much as the flags ask for expected, less found\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pagedkv_server: %s\n", error.what());
  }
  return 2;
}
