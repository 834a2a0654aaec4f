// pagedkv_server: loads a model, serves it until SIGTERM or SIGINT, and lets those finish that it is serving then.
#include <csignal>
#include <cstdio>
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
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // every thread inherits this: they wait for sigwait()

  HttpServer http(options.http);
  say("listening on http://" + options.http.host + ":" + std::to_string(http.port()));
  Session session(options.engine);
  EngineService service(session.engine(), session.tokenizer(), options.service);
  http.open(served_model(session, options), service);
  say("serving " + options.model_name + " on " + session.model().device());

  int signal = 0;
  sigwait(&signals, &signal);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);  // a second signal ends the program at once
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
