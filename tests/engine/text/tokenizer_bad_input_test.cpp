// Tokenizer files that are damaged, contradict themselves or ask for what is not done: each is refused by name.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "engine/small_tokenizer.hpp"

namespace {

using engine::Tokenizer;
using engine_test::check_message;
using engine_test::complaint;
using engine_test::load_tokenizer;
using engine_test::small_tokenizer;
using engine_test::TempFolder;
using nlohmann::json;

std::string complaint_about(const json& document) {
  return complaint([&] { load_tokenizer(document); });
}

}  // namespace

TEST_CASE("a tokenizer that asks for what is not done here is refused") {
  const json split = {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Removed"}};
  const json byte_level = {{"type", "ByteLevel"}};
  const struct {
    const char* path;
    json value;
    const char* message;
  } cases[] = {
      {"/normalizer", {{"type", "NFKC"}}, R"(normalizer.type: "NFC" expected, "NFKC" found)"},
      {"/normalizer",
       {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "Prepend"}}}}},
       R"(normalizer.normalizers[1].type: "NFC" expected, "Prepend" found)"},
      {"/model/type", "Unigram", R"(model.type: "BPE" expected, "Unigram" found)"},
      {"/model/dropout", 0.1, "model.dropout: 0 expected, 0.1 found"},
      {"/model/byte_fallback", true, "model.byte_fallback: false expected, true found"},
      {"/model/continuing_subword_prefix", "##", R"(model.continuing_subword_prefix: "" expected, "##" found)"},
      {"/model/end_of_word_suffix", "</w>", R"(model.end_of_word_suffix: "" expected, "</w>" found)"},
      {"/pre_tokenizer", nullptr, "pre_tokenizer: an object expected, null found"},
      {"/pre_tokenizer/type", "Whitespace", R"(pre_tokenizer.type: "ByteLevel" expected, "Whitespace" found)"},
      {"/pre_tokenizer/add_prefix_space", true, "pre_tokenizer.add_prefix_space: false expected, true found"},
      {"/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", json::array()}}, "ByteLevel at the end expected"},
      {"/pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", {split, byte_level}}},
       R"(pre_tokenizer.pretokenizers[0].behavior: "Isolated" expected, "Removed" found)"},
      {"/pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", {{{"type", "Punctuation"}}, byte_level}}},
       R"(pre_tokenizer.pretokenizers[0].type: "Split" or "Digits" expected, "Punctuation" found)"},
      {"/decoder", {{"type", "Metaspace"}}, R"(decoder.type: "ByteLevel" expected, "Metaspace" found)"},
      {"/post_processor", {{"type", "Bert"}}, R"(post_processor.type: "TemplateProcessing" expected, "Bert" found)"},
      {"/post_processor",
       {{"type", "TemplateProcessing"}, {"single", json::array()}},
       "one Sequence expected, 0 found"},
      {"/added_tokens/0/lstrip", true, "added_tokens[0].lstrip: false expected, true found"},
      {"/added_tokens/0/rstrip", true, "added_tokens[0].rstrip: false expected, true found"},
      {"/added_tokens/0/single_word", true, "added_tokens[0].single_word: false expected, true found"},
  };
  for (const auto& c : cases) {
    json document = small_tokenizer();
    document[json::json_pointer(c.path)] = c.value;
    check_message(complaint_about(document), {"/tokenizer.json: ", c.message});
  }
}

TEST_CASE("a tokenizer with missing, contradicting or impossible parts is refused") {
  const struct {
    const char* path;
    json value;
    const char* message;
  } cases[] = {
      {"/model/vocab/a", 1 << 20, "model.vocab.a: an integer from 0 to 1048575 expected, 1048576 found"},
      {"/model/vocab/a", -1, "model.vocab.a: an integer from 0 to 1048575 expected, -1 found"},
      {"/model/vocab/b", 'a', "model.vocab.b: an id that no other token has expected, 97 found"},
      {"/model/vocab", {{"a", 0}}, "model.merges[0]: a token of the vocabulary expected, \"h\" found"},
      {"/model/unk_token", "<unk>", "model.unk_token: a token of the vocabulary expected, \"<unk>\" found"},
      {"/model/merges/0", {"q", "u"}, "model.merges[0]: a token of the vocabulary expected, \"qu\" found"},
      {"/model/merges/0", {"zz", "a"}, "model.merges[0]: a token of the vocabulary expected, \"zz\" found"},
      {"/model/merges/0", {"a"}, "model.merges[0]: two tokens expected, [\"a\"] found"},
      {"/model/merges/0", "ab", "model.merges[0]: two tokens expected, \"ab\" found"},
      {"/model/merges/0", "a b c", "model.merges[0]: two tokens expected, \"a b c\" found"},
      {"/model/merges/0", 7, "model.merges[0]: a string expected, 7 found"},
      {"/model/merges", {{"a", 1}}, "model.merges: an array expected, {\"a\":1} found"},
      {"/added_tokens/0/id", 97, "added_tokens[0].id: an id that no other token has expected, 97 found"},
      {"/added_tokens/0/content", "a", "added_tokens[0].id: the vocabulary's id, 97, expected, 300 found"},
      {"/added_tokens/0/content", "", "added_tokens[0].content: a token expected, \"\" found"},
  };
  for (const auto& c : cases) {
    json document = small_tokenizer();
    document[json::json_pointer(c.path)] = c.value;
    check_message(complaint_about(document), {"/tokenizer.json: ", c.message});
  }
  for (const char* part : {"model", "pre_tokenizer", "decoder"}) {
    json document = small_tokenizer();
    document.erase(part);
    check_message(complaint_about(document), {"/tokenizer.json: field \"", part, "\" expected, none found"});
  }
  for (const char* part : {"vocab", "merges"}) {
    json document = small_tokenizer();
    document["model"].erase(part);
    check_message(complaint_about(document), {"/tokenizer.json: model: field \"", part, "\" expected, none found"});
  }
  const TempFolder empty;
  check_message(complaint([&] { Tokenizer::load(empty.path()); }), {"/tokenizer.json: a readable file expected, none"});
}

TEST_CASE("what only a combination of parts makes undoable is refused too") {
  json document = small_tokenizer();
  document["added_tokens"][1]["normalized"] = true;
  CHECK(complaint_about(document).empty());
  document["normalizer"] = {{"type", "NFC"}};
  check_message(complaint_about(document), {"added_tokens[1]: normalized: false beside a normalizer expected"});

  document = small_tokenizer();
  document["model"].update({{"unk_token", "<s>"}, {"fuse_unk", true}});
  CHECK(complaint_about(document).empty());  // every byte has a token
  document["model"]["vocab"].erase("z");
  check_message(complaint_about(document), {"model.fuse_unk: false expected, true found"});

  document = small_tokenizer();
  const json whole = {
      {"type", "TemplateProcessing"}, {"single", {{{"Sequence", {{"id", "A"}}}}}}, {"special_tokens", json::object()}};
  document["post_processor"] = {{"type", "Sequence"}, {"processors", {whole, whole}}};
  check_message(complaint_about(document), {"processors[1]: one TemplateProcessing expected, a second found"});
}

TEST_CASE("no damaged tokenizer.json does more than throw BadInput") {
  const TempFolder folder;
  const std::string good = small_tokenizer().dump();
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    folder.write("tokenizer.json", engine_test::damaged(good, random));
    const std::string message = complaint([&] {
      const Tokenizer tokenizer = Tokenizer::load(folder.path());
      tokenizer.decode(tokenizer.encode("hello hello<s> ab你"));
    });
    refused += message.empty() ? 0 : 1;
  }
  CHECK(refused > 1000);
}
