// The program as a user meets it: its texts, its JSON, its table; and for every bad input one line and exit code 2.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "engine/temp_folder.hpp"
#include "support/austen.hpp"

using engine_test::check_message;
using engine_test::read_file;
using engine_test::TempFolder;

namespace {

struct Outcome {
  int exit_code;
  std::string out, err;
};

// `out`: where its text goes instead of into the outcome.
Outcome generate(const std::vector<std::string>& arguments, const std::string& out = "") {
  const TempFolder folder;
  std::string command = PAGEDKV_GENERATE_PROGRAM;
  for (const std::string& argument : arguments) {
    std::string quoted = "'";
    for (const char c : argument) quoted += c == '\'' ? "'\\''" : std::string(1, c);
    command += " " + quoted + "'";
  }
  command += " >" + (out.empty() ? (folder.path() / "out").string() : out) + " 2>" + (folder.path() / "err").string();
  const int status = std::system(command.c_str());
  return {.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1,
          .out = out.empty() ? read_file(folder.path() / "out") : "",
          .err = read_file(folder.path() / "err")};
}

// Exit code 2, nothing on stdout, one line on stderr that holds each of `parts`.
void check_refused(const std::vector<std::string>& arguments, std::initializer_list<const char*> parts) {
  const Outcome outcome = generate(arguments);
  CAPTURE(arguments.back());
  CHECK(outcome.exit_code == 2);
  CHECK(outcome.out == "");
  CHECK(outcome.err.starts_with("generate: "));
  REQUIRE(outcome.err.ends_with("\n"));
  check_message(outcome.err.substr(0, outcome.err.size() - 1), parts);
}

std::vector<nlohmann::json> json_lines(const std::string& text) {
  std::vector<nlohmann::json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

const std::string demo_prompt = "It is a truth universally acknowledged, that a single man";

}  // namespace

TEST_CASE("without arguments it shows greedy search, four samples, beam search and the table") {
  const Outcome outcome = generate({"--backend", "cpu"});
  CHECK(outcome.exit_code == 0);
  CHECK(outcome.err == "");
  for (const std::string part :
       {"austen-5m on CPU", "weights                               19.0 MiB", "2048 blocks of 4, 8192 tokens",
        "4.0 sequences of 2048 tokens", "a single man in possession of a good fortune, must be in want of a wife.",
        "Elizabeth walked slowly towards the house,", "\n  4. ", "tokens/s", "contiguous", "exact", "saved by sharing",
        "copy-on-write", "prefix-cache hits               8 of"}) {
    CAPTURE(part);
    CHECK(outcome.out.find(part) != std::string::npos);
  }
  CHECK(outcome.out.find("copies by copy-on-write         0 ") == std::string::npos);
}

TEST_CASE("one prompt streams behind its own text; a second run gives the same bytes") {
  const Outcome outcome = generate({"--prompt", demo_prompt, "--max-tokens", "15", "--backend", "cpu"});
  CHECK(outcome.exit_code == 0);
  const std::string last_token = ".\n\n";
  CHECK(outcome.out == demo_prompt + " in possession of a good fortune, must be in want of a wife" + last_token + "\n");
  CHECK(outcome.out == generate({"--prompt", demo_prompt, "--max-tokens", "15", "--backend", "cpu"}).out);
}

TEST_CASE("several prompts, from flags and a file, come in order; --stats adds the memory plan and the tables") {
  const TempFolder folder;
  folder.write("prompts", "Elizabeth\r\n\nThe next morning\n");
  const Outcome outcome =
      generate({"--prompt", "Emma", "--prompt", demo_prompt, "--prompts-file", (folder.path() / "prompts").string(),
                "--max-tokens", "5", "--stats", "--backend", "cpu"});
  CHECK(outcome.exit_code == 0);
  CHECK(outcome.err == "");  // no bar: this is no terminal
  std::size_t position = 0;
  for (const std::string part :
       {"KV pool", "Emma\n  1. ", demo_prompt.c_str(), "Elizabeth\n  1. ", "The next morning\n  1. ", "20 tokens in",
        "MB, weights and K/V\n", " % of the memory's "}) {
    CAPTURE(part);
    position = outcome.out.find(part, position);
    REQUIRE(position != std::string::npos);
  }
}

TEST_CASE("--json prints one object for each sequence, then the statistics") {
  const Outcome outcome = generate({"--prompt",
                                    demo_prompt,
                                    "--prompt",
                                    demo_prompt,
                                    "--n",
                                    "3",
                                    "--temperature",
                                    "0.9",
                                    "--top-k",
                                    "40",
                                    "--top-p",
                                    "0.9",
                                    "--min-p",
                                    "0.01",
                                    "--repetition-penalty",
                                    "1.1",
                                    "--seed",
                                    "5",
                                    "--max-tokens",
                                    "12",
                                    "--block-size",
                                    "4",
                                    "--json",
                                    "--backend",
                                    "cpu"});
  CHECK(outcome.exit_code == 0);
  const auto lines = json_lines(outcome.out);
  REQUIRE(lines.size() == 7);
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(lines[i]["request"] == i / 3);
    CHECK(lines[i]["sample"] == i % 3);
    CHECK(lines[i]["prompt"] == demo_prompt);
    CHECK(lines[i]["token_ids"].size() == 12);
    CHECK(lines[i]["finish"] == "length");
    CHECK(lines[i]["text"] == lines[i % 3]["text"]);  // the same seed, the same prompt
  }
  CHECK(lines[6]["stats"]["generated_tokens"] == 72);
  CHECK(lines[6]["stats"]["block_copies"].get<int>() > 0);
  CHECK(lines[6]["memory"]["max_seqs"] == 32);
  CHECK(!lines[6].contains("read_speed"));  // which takes time to measure
}

TEST_CASE("--stats measures what decode steps read: at least the weights, once a step") {
  const auto lines = json_lines(generate({"--prompt", "Emma", "--max-tokens", "9", "--json", "--stats", "--backend",
                                          "cpu", "--max-model-len", "64", "--max-seqs", "3"})
                                    .out);
  REQUIRE(lines.size() == 2);
  const auto& read = lines[1]["read_speed"];
  CHECK(read["decode_steps"] == 7);  // of nine: not the prompt's, nor the last one, whose end nobody sees
  CHECK(read["decode_bytes"] > 7 * lines[1]["memory"]["weight_bytes"].get<double>());
  CHECK(read["machine_bytes_per_second"] > 0);
  CHECK(lines[1]["memory"]["max_model_len"] == 64);
  CHECK(lines[1]["memory"]["max_seqs"] == 3);
  CHECK(lines[1]["stats"]["num_blocks"] == 4 * 4);
}

TEST_CASE("swapping, drafts and a pool that is short change no text") {
  const std::vector<std::string> base{"--prompt", demo_prompt,    "--prompt", "Elizabeth", "--max-tokens", "40",
                                      "--json",   "--block-size", "4",        "--backend", "cpu"};
  int num_preemptions = 0;
  const auto texts = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    std::vector<nlohmann::json> ids;
    for (const auto& line : json_lines(generate(more).out)) {
      if (line.contains("token_ids")) ids.push_back(line["token_ids"]);
      if (line.contains("stats")) num_preemptions = line["stats"]["preemptions"];
    }
    return ids;
  };
  const auto expected = texts({});
  REQUIRE(expected.size() == 2);
  CHECK(texts({"--drafts", "3"}) == expected);
  CHECK(num_preemptions == 0);
  CHECK(texts({"--kv-blocks", "15"}) == expected);
  CHECK(num_preemptions > 0);
  CHECK(texts({"--kv-blocks", "15", "--preemption", "swap"}) == expected);
  CHECK(num_preemptions > 0);
}

TEST_CASE("--json holds for the demonstration, too: nothing but objects") {
  const auto lines = json_lines(generate({"--json", "--backend", "cpu"}).out);
  REQUIRE(lines.size() == 10);  // one text, four samples, four beams, the statistics
  for (std::size_t i = 0; i < 9; ++i) CHECK(lines[i]["request"] == (i + 3) / 4);
  CHECK(lines[9]["stats"]["cached_tokens"] == 8);
}

TEST_CASE("a text that does not get out is an error") {
  for (const char* flag : {"--help", "--json", "--stats"}) {
    const Outcome outcome = generate({"--prompt", "Emma", "--max-tokens", "2", "--backend", "cpu", flag}, "/dev/full");
    CHECK(outcome.exit_code == 2);
    CHECK(outcome.err == "generate: standard output: room for the text expected, No space left on device found\n");
  }
}

TEST_CASE("--beam prints the recorded beams") {
  const auto expected = pagedkv_test::golden("beam.json")["cases"][0]["sequences"];
  const Outcome outcome =
      generate({"--prompt", demo_prompt, "--beam", "4", "--max-tokens", "32", "--json", "--backend", "cpu"});
  const auto lines = json_lines(outcome.out);
  REQUIRE(lines.size() == 5);
  for (std::size_t i = 0; i < 4; ++i) CHECK(lines[i]["token_ids"] == expected[i]["ids"]);
}

TEST_CASE("odd bytes arrive as whole characters, and a text that ends by itself says so") {
  const auto cases = pagedkv_test::golden("greedy.json")["cases"];
  for (const auto& c : cases) {
    const Outcome outcome = generate({"--prompt", c["prompt"], "--max-tokens", "48", "--no-prefix-cache", "--threads",
                                      "1", "--max-batched-tokens", "64", "--json", "--backend", "cpu"});
    const auto lines = json_lines(outcome.out);  // which throws on broken UTF-8
    REQUIRE(lines.size() == 2);
    CHECK(lines[0]["text"] == c["greedy_text"]);
    CHECK((lines[0]["finish"] == "eos") == c["ends_with_eos"].get<bool>());
  }
}

TEST_CASE("--help documents every flag") {
  const Outcome outcome = generate({"--help"});
  CHECK(outcome.exit_code == 0);
  for (const std::string flag : {"--model",
                                 "--prompt",
                                 "--prompts-file",
                                 "--chat",
                                 "--n",
                                 "--beam",
                                 "--max-tokens",
                                 "--temperature",
                                 "--top-k",
                                 "--top-p",
                                 "--min-p",
                                 "--repetition-penalty",
                                 "--seed",
                                 "--ignore-eos",
                                 "--backend",
                                 "--threads",
                                 "--max-model-len",
                                 "--block-size",
                                 "--kv-blocks",
                                 "--memory-fraction",
                                 "--max-seqs",
                                 "--max-batched-tokens",
                                 "--preemption",
                                 "--host-blocks",
                                 "--drafts",
                                 "--no-prefix-cache",
                                 "--no-run-ahead",
                                 "--no-graphs",
                                 "--stats",
                                 "--json"}) {
    CAPTURE(flag);
    CHECK(outcome.out.find(flag) != std::string::npos);
  }
}

TEST_CASE("bad flags and values are refused by name") {
  check_refused({"--frobnicate"}, {"--frobnicate"});
  check_refused({"word"}, {"word"});
  check_refused({"--n", "many"}, {"--n", "many"});
  check_refused({"--n"}, {"--n"});
  for (const char* seed : {"-1", " -1", "18446744073709551616", "1.5"})
    check_refused({"--seed", seed}, {"seed: 0 to 18446744073709551615 expected"});
  check_refused({"--n", "99999999999999999999"}, {"--n"});
  for (const char* backend : {"abacus", "0", "1", "-7", "CPU"})
    check_refused({"--backend", backend}, {"backend: auto, cpu or cuda expected", backend});
  for (const char* flag : {"--model", "--prompts-file", "--temperature", "--kv-blocks", "--seed", "--backend"})
    check_refused({flag, ""}, {flag, "a value expected"});
  check_refused({"--n", "0"}, {"n: at least 1 expected, 0 found"});
  check_refused({"--beam", "-3"}, {"beam: at least 0 expected, -3 found"});
  check_refused({"--beam", "2", "--n", "2"}, {"n: 1 with beam search expected, 2 found"});
  check_refused({"--max-tokens", "0"}, {"max-tokens: at least 1 expected, 0 found"});
  check_refused({"--temperature", "-1"}, {"temperature: 0 to 1e6 expected, -1"});
  check_refused({"--temperature", "nan"}, {"temperature: 0 to 1e6 expected, nan found"});
  check_refused({"--top-k", "-1"}, {"top-k: at least 0 expected"});
  check_refused({"--top-p", "1.5"}, {"top-p: above 0 and at most 1 expected, 1.5"});
  check_refused({"--min-p", "2"}, {"min-p: 0 to 1 expected, 2"});
  check_refused({"--repetition-penalty", "0"}, {"repetition-penalty: above 0"});
  check_refused({"--block-size", "0"}, {"block-size: 1 to 65536 expected, 0 found"});
  check_refused({"--kv-blocks", "-1"}, {"kv-blocks: 0 to"});
  check_refused({"--kv-blocks", "2147483646"}, {"kv-blocks: at most", "2147483646 found"});
  check_refused({"--max-batched-tokens", "0"}, {"max-batched-tokens: 1 to 65536 expected, 0 found"});
  check_refused({"--threads", "-1"}, {"threads: 0 to 1024 expected, -1 found"});
  check_refused({"--max-model-len", "1"}, {"max-model-len: 2 to", "1 found"});
  check_refused({"--max-seqs", "0"}, {"max-seqs: 1 to 65536 expected, 0 found"});
  check_refused({"--memory-fraction", "1.5"}, {"memory-fraction: 0.01 to 1 expected, 1.5 found"});
  check_refused({"--memory-fraction", "nan"}, {"memory-fraction: 0.01 to 1 expected, nan found"});
  check_refused({"--preemption", "drop"}, {"preemption: recompute or swap expected, \"drop\" found"});
  check_refused({"--host-blocks", "-1"}, {"host-blocks: 0 to"});
  check_refused({"--drafts", "65"}, {"drafts: 0 to 64 expected, 65 found"});
}

TEST_CASE("missing and damaged files are refused by name") {
  const TempFolder folder;
  const std::string path = folder.path().string();
  check_refused({"--model", path + "/nowhere"}, {"config.json"});
  check_refused({"--model", path}, {"config.json"});
  check_refused({"--prompts-file", path + "/nowhere"}, {"prompts-file", "a readable file expected"});
  check_refused({"--prompts-file", path}, {"prompts-file", "a readable file expected"});
  folder.write("empty", "\n\n");
  check_refused({"--prompts-file", path + "/empty"}, {"prompts-file", "at least one prompt", "0 found"});
  folder.write("broken", "Emma\r\n\nbad \xff");
  check_refused({"--prompts-file", path + "/broken"},
                {"prompts-file: line 3: valid UTF-8 expected, a broken character at byte 4 found"});

  for (const char* name : {"config.json", "tokenizer.json"})
    folder.write(name, read_file(pagedkv_test::austen_dir() / name));
  check_refused({"--model", path}, {"safetensors"});
  const std::string weights = read_file(pagedkv_test::austen_dir() / "model.safetensors");
  folder.write("model.safetensors", weights.substr(0, weights.size() / 2));
  check_refused({"--model", path}, {"model.safetensors"});
  std::string config = read_file(pagedkv_test::austen_dir() / "config.json");
  config.replace(config.find("\"hidden_size\": 256"), 18, "\"hidden_size\": 512");
  folder.write("config.json", config);
  folder.write("model.safetensors", weights);
  check_refused({"--model", path}, {"model.embed_tokens.weight", "512", "256"});

  auto huge = nlohmann::json::parse(config);  // whose pool has more bytes than a 64-bit number counts
  huge["num_hidden_layers"] = 1 << 14;
  huge["num_attention_heads"] = huge["num_key_value_heads"] = 1 << 12;
  huge["head_dim"] = 1 << 16;
  folder.write("config.json", huge.dump());
  check_refused({"--model", path, "--block-size", "65536", "--kv-blocks", "2147483646"},
                {"kv-blocks: at most 0 (this machine's memory) expected, 2147483646 found"});
}

TEST_CASE("chat with a model that was not made for it is refused, naming what is missing") {
  check_refused({"--chat", "--prompt", "Emma"}, {"chat template"});
}

TEST_CASE("prompts that can never be served are refused with both numbers") {
  std::string longest;
  for (int i = 0; i < 3000; ++i) longest += " Emma";
  check_refused({"--prompt", longest}, {"prompt tokens: fewer than the model's 2048 positions expected", "found"});
  check_refused({"--prompt", demo_prompt, "--kv-blocks", "4", "--max-tokens", "100"},
                {"at most the pool's 4 expected, 8 found"});
  check_refused({"--prompt", demo_prompt, "--n", "600"},
                {"continuations of one request: at most 512 expected, 600 found"});
  check_refused({"--prompt", demo_prompt, "--max-model-len", "10"},
                {"prompt tokens: fewer than the model's 10 positions expected"});
  check_refused({"--prompt", "broken \xff text"}, {"UTF-8"});
  check_refused({"--backend", "cuda", "--prompt", "Emma", "--model", "/nowhere"}, {"config.json"});
}
