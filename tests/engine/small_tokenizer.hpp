// A tokenizer of a few merges, small enough to reason about, as the JSON that tests change and load.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "engine/temp_folder.hpp"
#include "engine/text/bpe.hpp"
#include "engine/text/tokenizer.hpp"

namespace engine_test {

inline engine::Tokenizer load_tokenizer(const nlohmann::json& document) {
  const TempFolder folder;
  folder.write("tokenizer.json", document.dump());
  return engine::Tokenizer::load(folder.path());
}

/// The 256 byte tokens (id = byte), a few merges, <s> and </s>, GPT-2's words.
inline nlohmann::json small_tokenizer() {
  using nlohmann::json;
  json vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[std::string(engine::symbol_of(static_cast<unsigned char>(byte)))] = byte;
  const std::vector<std::pair<std::string, std::string>> merges{{"h", "e"},     {"l", "l"}, {"he", "ll"}, {"hell", "o"},
                                                                {"Ġ", "hello"}, {"a", "b"}, {"b", "a"},   {"ab", "ab"}};
  for (const auto& [left, right] : merges) vocab[left + right] = vocab.size();
  vocab["unreachable"] = vocab.size();
  const auto added = [](int id, const char* content) {
    return json{{"id", id}, {"content", content}, {"special", true}};
  };
  return {{"normalizer", nullptr},
          {"added_tokens", {added(300, "<s>"), added(301, "</s>")}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}}};
}

}  // namespace engine_test
