// generate: continues prompts with a model folder; without a prompt it shows what paging, sharing and caching do.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <exception>
#include <new>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/engine.hpp"
#include "engine/options.hpp"
#include "engine/session.hpp"
#include "engine/tokenizer.hpp"

namespace {

using namespace engine;

void print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    throw BadInput("standard output", "room for the text", std::generic_category().message(errno));
}

// Runs the engine until it is idle and prints the one sample of `id` as it comes.
void stream(Session& session, int id) {
  StreamDecoder decoder(session.tokenizer());
  session.engine().run([&](const Event& event) {
    if (event.request->id == id) print(decoder.push(event.token));
  });
  print(decoder.flush() + "\n");
}

// "1. text", or "1. (-0.1234) text" for beams.
void print_branches(const Session& session, const Request& request) {
  for (const Branch& branch : request.branches) {
    char score[32] = "";
    if (request.beam) std::snprintf(score, sizeof score, "(%.4f)", branch.score);
    print("  " + std::to_string(branch.index + 1) + ". " + score + session.text_of(request, branch) + "\n");
  }
}

// On a terminal: one line that is written again and again.
void show_progress(const EngineStats& stats, std::size_t num_done, std::size_t num_prompts) {
  constexpr std::size_t width = 30;
  const std::size_t filled = width * num_done / num_prompts;
  std::fprintf(stderr, "\r[%s%s] %zu/%zu prompts, %.0f tokens/s ", std::string(filled, '#').c_str(),
               std::string(width - filled, '.').c_str(), num_done, num_prompts, stats.tokens_per_second());
  if (num_done == num_prompts) std::fputc('\n', stderr);
}

void print_json(const Session& session, const Request& request, const std::string& prompt) {
  for (const Branch& branch : request.branches) {
    const nlohmann::ordered_json line = {
        {"request", request.id},
        {"sample", branch.index},
        {"prompt", prompt},
        {"text", session.text_of(request, branch)},
        {"token_ids", std::vector<int>(branch.tokens.begin() + request.prompt_len, branch.tokens.end())},
        {"finish", branch.finish == Finish::eos ? "eos" : "length"},
        {"sum_logprob", branch.sum_logprob},
        {"score", branch.score},
        {"cached_tokens", request.num_cached}};
    print(line.dump() + "\n");
  }
}

void complete(Session& session, const Options& options) {
  Engine& engine = session.engine();
  std::vector<int> ids;
  for (const std::string& prompt : options.prompts) ids.push_back(session.submit(prompt, options.sampling));

  if (ids.size() == 1 && options.sampling.width() == 1 && options.sampling.beam_width == 0 && !options.json) {
    print(options.prompts[0]);
    return stream(session, ids[0]);
  }
  const auto is_finished = [&](int id) { return engine.request(id).state == State::finished; };
  const auto print_request = [&](std::size_t i) {
    const Request& request = engine.request(ids[i]);
    if (options.json) return print_json(session, request, options.prompts[i]);
    print(options.prompts[i] + "\n");
    print_branches(session, request);
  };
  // Each text is printed when it and those before it are complete; under a progress bar, at the end.
  const bool has_bar = options.has_prompts_file && isatty(STDERR_FILENO) != 0;
  for (std::size_t num_done = 0, num_printed = 0; num_printed < ids.size();) {
    engine.step();
    while (num_done < ids.size() && is_finished(ids[num_done])) ++num_done;
    if (has_bar) show_progress(engine.stats(), num_done, ids.size());
    if (has_bar && num_done < ids.size()) continue;
    for (; num_printed < num_done; ++num_printed) print_request(num_printed);
  }
}

// One part of the demonstration.
void show(Session& session, const char* title, const std::string& prompt, const SamplingParams& params, bool json) {
  const int id = session.submit(prompt, params);
  if (!json) print(std::string(title) + ":\n\n" + prompt);
  if (!json && params.width() == 1) return stream(session, id);
  session.engine().run();
  const Request& request = session.engine().request(id);
  if (json) return print_json(session, request, prompt);
  print("\n");
  print_branches(session, request);
}

void demonstrate(Session& session, const Options& options) {
  const std::string truth = "It is a truth universally acknowledged, that a single man";
  const std::string walk = "Elizabeth walked slowly towards the house,";

  show(session, "Greedy", truth, {.max_tokens = 80}, options.json);
  show(session, "\nFour samples that share the prompt's blocks (copy-on-write)", walk,
       {.max_tokens = 40, .n = 4, .temperature = 0.8f, .seed = options.sampling.seed}, options.json);
  show(session, "\nBeam search of width 4, the prompt's full blocks found in the prefix cache", walk,
       {.max_tokens = 32, .beam_width = 4}, options.json);
}

int run(int argc, char** argv) {
  const Options options = parse_options(argc, argv);
  if (!options.help.empty()) {
    print(options.help);
    return 0;
  }
  const bool is_demo = options.prompts.empty();
  constexpr int demo_block_size = 4;  // so that short prompts fill some blocks
  Session session(options, is_demo ? demo_block_size : 16);
  if (is_demo) {
    if (!options.json)
      print("pagedkv: " + options.model.filename().string() + " on " + session.model().device() + "\n\n");
    demonstrate(session, options);
  } else {
    complete(session, options);
  }
  if (options.json)
    print(nlohmann::ordered_json{{"stats", session.engine().stats().json()}}.dump() + "\n");
  else if (is_demo || options.stats)
    print("\n" + session.engine().stats().table());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("generate: memory: as much as the flags ask for expected, less found\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "generate: %s\n", error.what());
  }
  return 2;
}
