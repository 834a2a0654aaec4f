// parse_options: the flags of `generate` alone, and the file of prompts.
#include "engine/options.hpp"

#include <CLI/CLI.hpp>
#include <fstream>
#include <string>

#include "engine/bad_input.hpp"
#include "engine/text/utf8.hpp"

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

}  // namespace

Options parse_options(int argc, const char* const* argv) {
  Options options;
  std::string prompts_file;

  CLI::App app(
      "Generates text with a model in a Hugging Face folder (Llama, Mistral, Qwen2, Qwen3). Without a prompt: a short "
      "demonstration, with lengths, widths and temperatures of its own.",
      "generate");
  app.add_option("--prompt", options.prompts, "Text to continue; may be given several times")->allow_extra_args(false);
  app.add_option("--prompts-file", prompts_file, "File with one prompt a line");
  app.add_flag("--chat", options.chat, "Prompts are what a user says: each is put into the model's chat template");
  add_sampling_flags(app, options.sampling);
  add_engine_flags(app, options.engine);
  app.add_flag("--stats", options.stats, "Print the memory plan at the start, speed and memory at the end");
  app.add_flag("--json", options.json, "Print one JSON object for each text, then one with the statistics");
  options.help = parse_command_line(app, argc, argv);
  if (!options.help.empty()) return options;
  options.sampling.over({}).validate();
  options.engine.least_seqs = options.sampling.params.width();
  options.has_prompts_file = !prompts_file.empty();
  if (options.has_prompts_file) read_prompts(prompts_file, options.prompts);
  return options;
}

}  // namespace engine
