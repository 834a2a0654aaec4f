// parse_options: every flag of `generate`, with its help.
#include "engine/options.hpp"

#include <CLI/CLI.hpp>
#include <charconv>
#include <fstream>
#include <limits>
#include <string>

#include "engine/bad_input.hpp"
#include "engine/utf8.hpp"

namespace engine {

namespace {

// One prompt a line; empty lines are none.
void read_prompts(const std::string& path, std::vector<std::string>& prompts) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) throw BadInput("prompts-file", "a readable file", in_quotes(path));
  const std::size_t num_before = prompts.size();
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (const std::size_t bad = utf8::find_invalid(line); bad != std::string::npos)
      throw BadInput("prompts-file: line " + std::to_string(number), "valid UTF-8",
                     "a broken character at byte " + std::to_string(bad));
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.empty()) prompts.push_back(line);
  }
  if (prompts.size() == num_before) throw BadInput("prompts-file", "at least one prompt in " + in_quotes(path), "0");
}

BackendKind backend_of(const std::string& name) {
  if (name == "auto") return BackendKind::automatic;
  if (name == "cpu") return BackendKind::cpu;
  if (name == "cuda") return BackendKind::cuda;
  throw BadInput("backend", "auto, cpu or cuda", in_quotes(name));
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

void check_range(const char* name, int value, int lowest, int highest) {
  if (value < lowest || value > highest)
    throw BadInput(name, std::to_string(lowest) + " to " + std::to_string(highest), std::to_string(value));
}

}  // namespace

Options parse_options(int argc, const char* const* argv) {
  Options options;
  options.model = std::filesystem::path(PAGEDKV_MODELS_DIR) / "austen-5m";
  std::string prompts_file, backend = "auto", seed = "0";
  bool no_prefix_cache = false;
  SamplingParams& sampling = options.sampling;

  CLI::App app(
      "Generates text with a Llama model in a Hugging Face folder. Without a prompt: a short demonstration, with "
      "lengths, widths and temperatures of its own.",
      "generate");
  app.option_defaults()->always_capture_default();
  app.add_option("--model", options.model, "Folder with config.json, *.safetensors and tokenizer.json");
  app.add_option("--prompt", options.prompts, "Text to continue; may be given several times")->allow_extra_args(false);
  app.add_option("--prompts-file", prompts_file, "File with one prompt a line");
  app.add_option("--n", sampling.n, "Samples of each prompt, sharing its blocks");
  app.add_option("--beam", sampling.beam_width, "Beam search of this width instead of sampling; 0: off");
  app.add_option("--max-tokens", sampling.max_tokens, "Tokens to generate at most");
  app.add_option("--temperature", sampling.temperature, "Of sampling; 0: greedy");
  app.add_option("--top-k", sampling.top_k, "Sample among the k likeliest tokens; 0: all");
  app.add_option("--top-p", sampling.top_p, "Sample among the likeliest tokens that hold this probability");
  app.add_option("--min-p", sampling.min_p, "Sample among tokens at least this times as likely as the likeliest");
  app.add_option("--repetition-penalty", sampling.repetition_penalty, "Above 1: tokens seen before become less likely");
  app.add_option("--seed", seed, "The same seed gives the same text")->type_name("UINT");
  app.add_option("--backend", backend, "auto, cpu or cuda");
  app.add_option("--threads", options.num_threads, "Of the CPU back end; 0: one for each core");
  app.add_option("--block-size", options.block_size, "Tokens a KV block holds")->default_str("16");
  app.add_option("--kv-blocks", options.num_blocks, "Blocks in the KV pool; 0: chosen by the model and the memory");
  app.add_option("--max-batched-tokens", options.max_batched_tokens, "Tokens computed in one step at most");
  app.add_flag("--no-prefix-cache", no_prefix_cache, "Do not keep the blocks of finished requests for later ones");
  app.add_flag("--stats", options.stats, "Print speed and memory at the end");
  app.add_flag("--json", options.json, "Print one JSON object for each text, then one with the statistics");
  for (CLI::Option* const option : app.get_options())  // CLI11 takes an empty number for 0
    if (option->get_name() != "--prompt")
      option->check([](const std::string& text) { return std::string(text.empty() ? "a value expected" : ""); });
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    options.help = app.help();
    return options;
  } catch (const CLI::ParseError& error) {
    throw BadInput("command line", "flags and values as in generate --help", in_quotes(error.what()));
  }
  options.backend = backend_of(backend);
  sampling.seed = seed_of(seed);
  sampling.validate();
  check_range("threads", options.num_threads, 0, 1024);
  check_range("block-size", options.block_size.value_or(16), 1, 1 << 16);
  check_range("kv-blocks", options.num_blocks, 0, std::numeric_limits<int>::max() - 1);
  check_range("max-batched-tokens", options.max_batched_tokens, 1, 1 << 16);
  options.prefix_cache = !no_prefix_cache;
  options.has_prompts_file = !prompts_file.empty();
  if (options.has_prompts_file) read_prompts(prompts_file, options.prompts);
  return options;
}

}  // namespace engine
