// generate: continues prompts with a model folder; without a prompt it shows what paging, sharing and caching do.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <exception>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/engine.hpp"
#include "engine/options.hpp"
#include "engine/progress.hpp"
#include "engine/session.hpp"
#include "engine/stats_json.hpp"
#include "engine/step_meter.hpp"
#include "engine/table_row.hpp"
#include "engine/text/tokenizer.hpp"

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
  const SamplingParams params = options.sampling.over(session.config().generation);
  std::vector<int> ids;
  for (const std::string& prompt : options.prompts)
    ids.push_back(options.chat ? session.ask(prompt, params) : session.submit(prompt, params));

  if (ids.size() == 1 && params.width() == 1 && params.beam_width == 0 && !options.json) {
    print(options.prompts[0] + (options.chat ? "\n" : ""));
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
  const bool has_bar = ids.size() > 1 && isatty(STDERR_FILENO) != 0;
  Progress progress(stderr);
  for (const int id : ids) progress.expect(engine.request(id));
  for (std::size_t num_done = 0, num_printed = 0; num_printed < ids.size();) {
    for (const Event& event : engine.step()) progress.observe(event);
    while (num_done < ids.size() && is_finished(ids[num_done])) ++num_done;
    if (has_bar) progress.draw();
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
       {.max_tokens = 40, .n = 4, .temperature = 0.8f, .seed = options.sampling.params.seed}, options.json);
  show(session, "\nBeam search of width 4, the prompt's full blocks found in the prefix cache", walk,
       {.max_tokens = 32, .beam_width = 4}, options.json);
}

// What decode steps read against what the machine reads at best.
struct ReadSpeed {
  DecodeTraffic traffic;
  double ceiling;  // bytes per second

  double share() const { return traffic.bytes_per_second() / ceiling; }
  std::string table() const {
    if (traffic.num_steps == 0) return "";
    return table_row("read by a decode step", "%.1f MB, weights and K/V",
                     traffic.bytes / static_cast<double>(traffic.num_steps) * 1e-6) +
           table_row("  at", "%.1f GB/s, %.0f %% of the memory's %.1f GB/s", traffic.bytes_per_second() * 1e-9,
                     100 * share(), ceiling * 1e-9);
  }
  nlohmann::ordered_json json() const {
    return {{"decode_steps", traffic.num_steps},
            {"decode_bytes", traffic.bytes},
            {"decode_seconds", traffic.seconds},
            {"read_bytes_per_second", traffic.bytes_per_second()},
            {"machine_bytes_per_second", ceiling}};
  }
};

ReadSpeed read_speed(const Session& session, const StepMeter& meter) {
  return {.traffic = decode_traffic(meter.steps(), session.plan().step_weights, session.model().kv_bytes_per_token()),
          .ceiling = machine_read_speed(session.plan())};
}

int run(int argc, char** argv) {
  const Options options = parse_options(argc, argv);
  if (!options.help.empty()) {
    print(options.help);
    return 0;
  }
  const bool is_demo = options.prompts.empty(), has_table = !options.json && (is_demo || options.stats);
  constexpr int demo_block_size = 4;  // so that short prompts fill some blocks
  std::optional<StepMeter> meter;
  Session session(options.engine, is_demo ? demo_block_size : 16, [&](const Batch& batch) {
    if (meter) meter->observe(batch);
  });
  if (options.stats) meter.emplace(step_meter(session, options.engine));
  if (has_table)
    print("pagedkv: " + options.engine.model.filename().string() + " on " + session.model().device() + "\n\n" +
          session.plan().table() + "\n");
  if (is_demo)
    demonstrate(session, options);
  else
    complete(session, options);
  std::optional<ReadSpeed> speed;
  if (meter) speed = read_speed(session, *meter);
  if (options.json) {
    nlohmann::ordered_json last{{"stats", json_of(session.engine().stats())}, {"memory", session.plan().json()}};
    if (speed) last["read_speed"] = speed->json();
    print(last.dump() + "\n");
  } else if (has_table) {
    print("\n" + session.engine().stats().table() + (speed ? speed->table() : ""));
  }
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
