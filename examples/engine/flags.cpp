// The shared flags, with their help and their limits.
#include "engine/flags.hpp"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <limits>

#include "engine/bad_input.hpp"

namespace engine {

namespace {

BackendKind backend_of(const std::string& name) {
  if (name == "auto") return BackendKind::automatic;
  if (name == "cpu") return BackendKind::cpu;
  if (name == "cuda") return BackendKind::cuda;
  throw BadInput("backend", "auto, cpu or cuda", in_quotes(name));
}

bool swaps(const std::string& name) {
  if (name == "recompute" || name == "swap") return name == "swap";
  throw BadInput("preemption", "recompute or swap", in_quotes(name));
}

// CLI11 would wrap what is below 0 and clip what is too large.
std::uint64_t seed_of(const std::string& text) {
  std::uint64_t seed = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, seed);
  if (error != std::errc{} || stop != end)
    throw BadInput("seed", "0 to " + std::to_string(std::numeric_limits<std::uint64_t>::max()), in_quotes(text));
  return seed;
}

std::string number(double value) {
  std::string text = std::to_string(value);
  if (text.find('.') == std::string::npos) return text;
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

// An integer within limits; `Value` is int or std::optional<int>. `open` describes an optional that stays empty.
template <class Value>
void add_int(CLI::App& app, const std::string& name, Value& value, int lowest, int highest, const std::string& help,
             const std::string& open = "") {
  const auto take = [&value, name, lowest, highest](int given) {
    check_range(name, given, lowest, highest);
    value = given;
  };
  const std::string shown = [&] {
    if constexpr (std::is_same_v<Value, int>) return std::to_string(value);
    return open;
  }();
  app.add_option_function<int>("--" + name, take, help)->default_str(shown);
}

void add_switch_off(CLI::App& app, const std::string& name, bool& value, const std::string& help) {
  app.add_flag_callback("--no-" + name, [&value] { value = false; }, help);
}

}  // namespace

void check_range(const std::string& name, double value, double lowest, double highest) {
  if (!(value >= lowest && value <= highest))
    throw BadInput(name, number(lowest) + " to " + number(highest), number(value));
}

void add_engine_flags(CLI::App& app, EngineFlags& flags) {
  constexpr int many = std::numeric_limits<int>::max() - 1;
  if (flags.model.empty()) flags.model = std::filesystem::path(PAGEDKV_MODELS_DIR) / "austen-5m";
  app.add_option("--model", flags.model, "Folder with config.json, *.safetensors and tokenizer.json")
      ->default_str(flags.model.string());
  app.add_option_function<std::string>(
         "--backend", [&flags](const std::string& name) { flags.backend = backend_of(name); }, "auto, cpu or cuda")
      ->default_str("auto");
  add_int(app, "threads", flags.num_threads, 0, 1024, "Of the CPU back end; 0: one for each core");
  add_int(app, "max-model-len", flags.max_model_len, 2, many, "Tokens of a sequence at most", "the model's positions");
  add_int(app, "block-size", flags.block_size, 1, 1 << 16, "Tokens a KV block holds", "16");
  add_int(app, "kv-blocks", flags.num_blocks, 0, many, "Blocks in the KV pool; 0: chosen by the model and the memory");
  app.add_option_function<double>(
         "--memory-fraction",
         [&flags](double given) {
           check_range("memory-fraction", given, 0.01, 1);
           flags.memory_fraction = given;
         },
         "Of the GPU's free memory, for weights, activations and the pool")
      ->default_str(number(flags.memory_fraction));
  add_int(app, "max-seqs", flags.max_seqs, 1, 1 << 16, "Sequences that run at once", "32, on a GPU 256");
  add_int(app, "max-batched-tokens", flags.max_batched_tokens, 1, 1 << 16, "Tokens computed in one step at most",
          "512, on a GPU 8192");
  app.add_option_function<std::string>(
         "--preemption", [&flags](const std::string& name) { flags.swap = swaps(name); },
         "Who is pushed out of the pool shall later recompute, or swap to host memory meanwhile")
      ->default_str("recompute");
  add_int(app, "host-blocks", flags.num_host_blocks, 0, many, "Blocks of host memory for those who swap",
          "as many as the pool's, up to 4 GiB");
  add_int(app, "drafts", flags.max_drafts, 0, 64, "Tokens guessed from the text before and verified in one step");
  add_switch_off(app, "prefix-cache", flags.prefix_cache, "Do not keep the blocks of finished requests for later ones");
  add_switch_off(app, "run-ahead", flags.run_ahead, "On a GPU: schedule no step while another one computes");
  add_switch_off(app, "graphs", flags.use_graphs, "On a GPU: launch each kernel by itself");
}

SamplingParams SamplingFlags::over(const GenerationDefaults& defaults) const {
  SamplingParams result = params;
  const auto choose = [](auto& field, const auto& given, const auto& recommended) {
    if (given || recommended) field = given ? *given : *recommended;
  };
  choose(result.temperature, temperature, defaults.temperature);
  choose(result.top_k, top_k, defaults.top_k);
  choose(result.top_p, top_p, defaults.top_p);
  choose(result.min_p, min_p, defaults.min_p);
  choose(result.repetition_penalty, repetition_penalty, defaults.repetition_penalty);
  return result;
}

void add_sampling_flags(CLI::App& app, SamplingFlags& flags) {
  SamplingParams& params = flags.params;
  const auto add = [&app](const std::string& name, auto& value, const std::string& help, const std::string& shown) {
    using Value = typename std::remove_reference_t<decltype(value)>::value_type;
    app.add_option_function<Value>(name, [&value](Value given) { value = given; }, help)->default_str(shown);
  };
  const auto show = [](CLI::Option* option) { option->capture_default_str(); };
  show(app.add_option("--n", params.n, "Samples of each prompt, sharing its blocks"));
  show(app.add_option("--beam", params.beam_width, "Beam search of this width instead of sampling; 0: off"));
  show(app.add_option("--max-tokens", params.max_tokens, "Tokens to generate at most"));
  add("--temperature", flags.temperature, "Of sampling; 0: greedy", "the model's, or 0");
  add("--top-k", flags.top_k, "Sample among the k likeliest tokens; 0: all", "the model's, or 0");
  add("--top-p", flags.top_p, "Sample among the likeliest tokens that hold this probability", "the model's, or 1");
  add("--min-p", flags.min_p, "Sample among tokens at least this times as likely as the likeliest",
      "the model's, or 0");
  add("--repetition-penalty", flags.repetition_penalty, "Above 1: tokens seen before become less likely",
      "the model's, or 1");
  app.add_option_function<std::string>(
         "--seed", [&params](const std::string& text) { params.seed = seed_of(text); },
         "The same seed gives the same text")
      ->type_name("UINT")
      ->default_str("0");
  app.add_flag("--ignore-eos", params.ignore_eos, "Go on behind a token that ends the text");
}

std::string parse_command_line(CLI::App& app, int argc, const char* const* argv) {
  for (CLI::Option* const option : app.get_options())  // CLI11 takes an empty number for 0
    if (option->get_name() != "--prompt")
      option->check([](const std::string& text) { return std::string(text.empty() ? "a value expected" : ""); });
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return app.help();
  } catch (const CLI::ParseError& error) {
    throw BadInput("command line", "flags and values as in " + app.get_name() + " --help", in_quotes(error.what()));
  }
  return "";
}

}  // namespace engine
