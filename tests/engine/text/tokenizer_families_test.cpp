// Each family's tokenizer pipeline against what the library that trained it says, and prompts made of parts.
#include <doctest/doctest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/small_tokenizer.hpp"

namespace {

using engine::TextPart;
using engine::Tokenizer;
using engine_test::complaint;
using engine_test::load_tokenizer;
using engine_test::read_file;
using engine_test::small_tokenizer;
using nlohmann::json;
using Ids = std::vector<std::int32_t>;
using Parts = std::vector<TextPart>;

const std::string tokenizers_dir = PAGEDKV_SOURCE_DIR "/tests/engine/golden/tokenizers/";

}  // namespace

TEST_CASE("each family's pipeline encodes and decodes nasty texts as the library that trained it") {
  const auto texts = json::parse(read_file(tokenizers_dir + "texts.json")).get<std::vector<std::string>>();
  REQUIRE(texts.size() > 40);
  for (const char* family : {"gpt2", "llama3", "qwen", "smollm2", "tekken"}) {
    const Tokenizer tokenizer = Tokenizer::load(tokenizers_dir + family);
    const json golden = json::parse(read_file(tokenizers_dir + family + "/golden.json"));
    for (std::size_t i = 0; i < texts.size(); ++i) {
      CAPTURE(family);
      CAPTURE(texts[i]);
      const Ids ids = golden.at("ids").at(i).get<Ids>();
      CHECK(tokenizer.encode(texts[i]) == ids);
      CHECK(tokenizer.encode(Parts{{texts[i], false}}) == golden.at("untrusted").at(i).get<Ids>());
      CHECK(tokenizer.decode(ids) == golden.at("decoded").at(i).get<std::string>());
    }
  }
}

TEST_CASE("parts are joined before words are cut") {
  const Tokenizer tokenizer = load_tokenizer(small_tokenizer());
  CHECK(tokenizer.encode(Parts{{"he"}, {"llo", false}, {" hello"}}) == Ids{259, 260});
  CHECK(tokenizer.encode(Parts{{"\xc3\xa9"}, {"", false}}) == tokenizer.encode("é"));
  CHECK(tokenizer.encode(Parts{}).empty());
  CHECK_FALSE(complaint([&] { tokenizer.encode(Parts{{"\xc3"}, {"\xa9"}}); }).empty());
}

TEST_CASE("a special token that reaches into an untrusted part is text") {
  const Tokenizer tokenizer = load_tokenizer(small_tokenizer());
  const Ids spelt{'<', 's', '>'};
  CHECK(tokenizer.encode(Parts{{"<s>"}}) == Ids{300});
  CHECK(tokenizer.encode(Parts{{"<s>", false}}) == spelt);
  CHECK(tokenizer.encode(Parts{{"<s"}, {">", false}}) == spelt);
  CHECK(tokenizer.encode(Parts{{"<", false}, {"s>"}}) == spelt);
  CHECK(tokenizer.encode(Parts{{"<"}, {"s>"}}) == Ids{300});
  CHECK(tokenizer.encode(Parts{{"<s>"}, {"<s>", false}, {"<s>"}}) == Ids{300, '<', 's', '>', 300});
  CHECK(tokenizer.encode(Parts{{"a", false}, {"<s>"}, {"<s>", false}}) == Ids{'a', 300, '<', 's', '>'});
}

TEST_CASE("an untrusted text never becomes a special token, by whatever way words are found") {
  json document = small_tokenizer();
  document["added_tokens"].push_back({{"id", 259}, {"content", "hello"}, {"special", true}});  // what the merges make
  for (const bool ignore_merges : {false, true}) {
    document["model"]["ignore_merges"] = ignore_merges;
    const Tokenizer tokenizer = load_tokenizer(document);
    CHECK(tokenizer.encode("hello") == Ids{259});
    const Ids ids = tokenizer.encode(Parts{{"hello", false}});
    CHECK(std::ranges::none_of(ids, [&](std::int32_t id) { return tokenizer.is_special(id); }));
    CHECK(tokenizer.decode(ids) == "hello");
  }
}

TEST_CASE("added tokens that are not special are found in untrusted text too") {
  json document = small_tokenizer();
  document["added_tokens"].push_back({{"id", 302}, {"content", "<think>"}, {"special", false}});
  CHECK(load_tokenizer(document).encode(Parts{{"<thi"}, {"nk><s>", false}}) == Ids{302, '<', 's', '>'});
}

TEST_CASE("tokens marked normalized are found after the others") {
  json document = small_tokenizer();
  document["added_tokens"].push_back({{"id", 302}, {"content", "ab<s>"}, {"special", false}, {"normalized", true}});
  CHECK(load_tokenizer(document).encode("ab<s>ab") == Ids{300 - 39, 300, 300 - 39});
  document["added_tokens"][2]["normalized"] = false;
  CHECK(load_tokenizer(document).encode("ab<s>ab") == Ids{302, 300 - 39});
}

TEST_CASE("NFC composes what can be composed, around added tokens and not within them") {
  json document = small_tokenizer();
  document["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  document["added_tokens"].push_back({{"id", 302}, {"content", "e\u0301"}, {"special", true}, {"normalized", false}});
  const Tokenizer tokenizer = load_tokenizer(document);
  CHECK(tokenizer.decode(tokenizer.encode("A\u030a\u1112\u1161\u11ab")) == "\u00c5\ud55c");
  CHECK(tokenizer.encode("e\u0301") == Ids{302});
  CHECK(tokenizer.encode("plain é") == load_tokenizer(small_tokenizer()).encode("plain é"));
  std::string marks = "q";
  for (int i = 0; i < 128; ++i) marks += "\u0301\u0323";
  CHECK(tokenizer.encode(marks + marks).size() == 2 * marks.size());
  engine_test::check_message(complaint([&] { tokenizer.encode(marks + "\u0323"); }),
                             {"text: at most 256 combining marks in a row expected"});
}

TEST_CASE("Digits cut numbers out of words, one by one if told so") {
  json document = small_tokenizer();
  document["model"]["vocab"]["12"] = 265;
  document["model"]["merges"].push_back({"1", "2"});
  const auto encode_with = [&](const json& digits) {
    document["pre_tokenizer"] = {{"type", "Sequence"},
                                 {"pretokenizers", {digits, {{"type", "ByteLevel"}, {"add_prefix_space", false}}}}};
    return load_tokenizer(document).encode("a12");
  };
  CHECK(encode_with({{"type", "Digits"}, {"individual_digits", true}}) == Ids{'a', '1', '2'});
  CHECK(encode_with({{"type", "Digits"}, {"individual_digits", false}}) == Ids{'a', 265});
}

TEST_CASE("bytes that no token spells are left out, or become the unknown token") {
  json document = small_tokenizer();
  document["model"]["vocab"].erase("x");
  CHECK(load_tokenizer(document).encode("axbxx") == Ids{300 - 39});  // and their neighbours merge
  CHECK(load_tokenizer(document).encode("x").empty());
  document["model"]["unk_token"] = "<s>";
  CHECK(load_tokenizer(document).encode("axbxx") == Ids{'a', 300, 'b', 300, 300});
}
