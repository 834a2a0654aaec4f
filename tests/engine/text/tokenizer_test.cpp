// Tokenizer: the golden cases, both spellings of merges, streaming, and a slow encoder as second opinion.
#include "engine/text/tokenizer.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "engine/small_tokenizer.hpp"
#include "engine/text/utf8.hpp"

namespace {

using engine::StreamDecoder;
using engine::Tokenizer;
using engine_test::check_message;
using engine_test::complaint;
using engine_test::load_tokenizer;
using engine_test::read_file;
using engine_test::small_tokenizer;
using nlohmann::json;
using Ids = std::vector<std::int32_t>;

const std::string austen_dir = PAGEDKV_MODELS_DIR "/austen-5m";

const Tokenizer& austen() {
  static const Tokenizer tokenizer = Tokenizer::load(austen_dir);
  return tokenizer;
}

const json& golden_cases() {
  static const json document = json::parse(read_file(austen_dir + "/golden/tokenizer_cases.json"));
  return document.at("cases");
}

/// A random text of ASCII words, spaces, line ends, digits, accents, CJK and emoji.
std::string random_text(std::mt19937& random, int num_pieces) {
  const char* pieces[] = {"a", "B",   "the ",   " house", "'s", "'LL", "\n",   "\r\n",
                          " ", "   ", "\t",     "12345",  "é",  "ß",   "你好", "😀",
                          "—", "!?",  "\u00a0", "ſ",      "़",   "٣",   "Ǆ",    "<|end_of_text|>"};
  std::string text;
  for (int i = 0; i < num_pieces; ++i) text += pieces[random() % std::size(pieces)];
  return text;
}

}  // namespace

TEST_CASE("every golden case encodes and decodes as it must") {
  CHECK(golden_cases().size() == 42);
  for (const json& c : golden_cases()) {
    const auto text = c.at("text").get<std::string>();
    CAPTURE(text);
    const auto ids = c.at("ids").get<Ids>();
    CHECK(austen().encode(text) == ids);
    CHECK(austen().encode(text, false) == c.at("ids_no_bos").get<Ids>());
    const auto decoded_from = c.at("ids_no_bos").get<Ids>();
    CHECK(austen().decode(decoded_from, false) == c.at("decoded").get<std::string>());
    CHECK(austen().decode(ids) == c.at("decoded_skip_special").get<std::string>());
  }
}

TEST_CASE("the vocabulary answers by name and by id") {
  CHECK(austen().vocab_size() == 4096);
  CHECK(austen().token_to_id("<|end_of_text|>") == 1);
  CHECK(austen().token_to_id("Ġthe") == 268);
  CHECK_FALSE(austen().token_to_id(" the"));
  CHECK(austen().is_special(1));
  CHECK_FALSE(austen().is_special(2));
  CHECK(austen().token_bytes(*austen().token_to_id("Ġthe")) == " the");
  CHECK(austen().token_bytes(4096) == "");
  CHECK(austen().decode(Ids{-1, 4096, 1 << 30}) == "");
}

TEST_CASE("merges written as strings give the same ids as merges written as pairs") {
  json document = json::parse(read_file(austen_dir + "/tokenizer.json"));
  for (json& merge : document["model"]["merges"])
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  const Tokenizer tokenizer = load_tokenizer(document);
  for (const json& c : golden_cases())
    CHECK(tokenizer.encode(c.at("text").get<std::string>()) == c.at("ids").get<Ids>());
}

TEST_CASE("any text decodes to itself") {
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    const std::string text = random_text(random, static_cast<int>(random() % 40));
    CAPTURE(text);
    CHECK(austen().decode(austen().encode(text, false), false) == text);
  }
}

TEST_CASE("the heap merges as the definition says: again and again the lowest rank, leftmost first") {
  const json document = json::parse(read_file(austen_dir + "/tokenizer.json"));
  std::map<std::pair<std::string, std::string>, int> ranks;
  for (const json& merge : document["model"]["merges"])
    ranks.emplace(std::pair(merge[0].get<std::string>(), merge[1].get<std::string>()), static_cast<int>(ranks.size()));
  const auto slow = [&](std::string_view word) {
    std::vector<std::string> parts;
    for (const char byte : word) parts.emplace_back(engine::symbol_of(static_cast<unsigned char>(byte)));
    for (;;) {
      std::size_t best = parts.size();
      int best_rank = std::numeric_limits<int>::max();
      for (std::size_t i = 0; i + 1 < parts.size(); ++i)
        if (const auto rank = ranks.find({parts[i], parts[i + 1]}); rank != ranks.end() && rank->second < best_rank)
          best = i, best_rank = rank->second;
      if (best == parts.size()) break;
      parts[best] += parts[best + 1];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    Ids ids;
    for (const std::string& part : parts) ids.push_back(*austen().token_to_id(part));
    return ids;
  };
  std::mt19937 random(2);
  for (int i = 0; i < 300; ++i) {
    std::string word;  // of letters only, so that the pattern leaves it whole
    for (auto n = 1 + random() % 40; n > 0; --n) word += "etaoinshrdlu"[random() % 12];
    CAPTURE(word);
    CHECK(austen().encode(word, false) == slow(word));
  }
}

TEST_CASE("streamed pieces hold whole characters and join to what decode gives") {
  std::mt19937 random(3);
  for (int i = 0; i < 300; ++i) {
    Ids ids;
    for (auto n = random() % 50; n > 0; --n) {
      const bool single_byte = random() % 2 == 0;  // ids 2 to 257 are single bytes: mostly broken UTF-8
      ids.push_back(static_cast<std::int32_t>(single_byte ? 2 + random() % 256 : random() % 4100));
    }
    for (const bool skip_special : {true, false}) {
      StreamDecoder stream(austen(), skip_special);
      std::string joined;
      const auto take = [&](const std::string& piece) {
        CHECK(engine::utf8::find_invalid(piece) == std::string::npos);
        joined += piece;
      };
      for (const std::int32_t id : ids) take(stream.push(id));
      take(stream.flush());
      CHECK(stream.flush() == "");
      CHECK(joined == austen().decode(ids, skip_special));
    }
  }
}

TEST_CASE("a character comes out with its last byte, and broken bytes as one U+FFFD for each maximal subpart") {
  const Tokenizer tokenizer = load_tokenizer(small_tokenizer());
  StreamDecoder stream(tokenizer);
  CHECK(stream.push(0xf0) == "");
  CHECK(stream.push(0x9f) == "");
  CHECK(stream.push(300) == "");  // a special token between the bytes of a character
  CHECK(stream.push(0x98) == "");
  CHECK(stream.push(0x80) == "😀");
  CHECK(stream.push(0xe2) == "");
  CHECK(stream.push('x') == "\uFFFDx");
  CHECK(stream.push(0xc3) == "");
  CHECK(stream.flush() == "\uFFFD");
  CHECK(tokenizer.decode(Ids{0xe0, 0x80, 'a'}) == "\uFFFD\uFFFDa");
  CHECK(tokenizer.decode(Ids{0xf4, 0x90, 0x80, 0x80}) == "\uFFFD\uFFFD\uFFFD\uFFFD");
  CHECK(tokenizer.decode(Ids{0xed, 0xa0, 0x80}) == "\uFFFD\uFFFD\uFFFD");
  CHECK(tokenizer.decode(Ids{0xf1, 0x80, 0x80, 0xe1, 0x80, 0xc2, 'b'}) == "\uFFFD\uFFFD\uFFFDb");
}

TEST_CASE("text that is not UTF-8 is refused with the place") {
  const auto message = [](std::string_view text) { return complaint([&] { austen().encode(text); }); };
  check_message(message("abc\xff"), {"text: valid UTF-8 expected, a broken character at byte 3 found"});
  check_message(message("\xc3"), {"at byte 0"});
  check_message(message("é\xed\xa0\x80"), {"at byte 2"});
  check_message(message("\xc0\xaf"), {"at byte 0"});
  check_message(message("\xf4\x90\x80\x80"), {"at byte 0"});
}

TEST_CASE("added tokens split the text, the longest first") {
  json document = small_tokenizer();
  document["added_tokens"].push_back({{"id", 302}, {"content", "<s><s>"}, {"special", false}});
  const Tokenizer tokenizer = load_tokenizer(document);
  CHECK(tokenizer.vocab_size() == 303);
  CHECK(tokenizer.encode("hello<s>hello</s>") == Ids{259, 300, 259, 301});
  CHECK(tokenizer.encode("<s><s><s><s") == Ids{302, 300, '<', 's'});
  CHECK(tokenizer.decode(Ids{302, 259, 301}) == "<s><s>hello");
  CHECK(tokenizer.decode(Ids{302, 259, 301}, false) == "<s><s>hello</s>");
}

TEST_CASE("ByteLevel alone cuts words as GPT-2 does, unless told not to") {
  json document = small_tokenizer();
  CHECK(load_tokenizer(document).encode("hello hello") == Ids{259, 260});
  CHECK(load_tokenizer(document).encode("hello  hello") == Ids{259, ' ', 260});
  CHECK(load_tokenizer(document).encode("ababa") == Ids{263, 'a'});
  document["pre_tokenizer"]["use_regex"] = false;
  document["model"]["merges"].push_back({"hello", "Ġhello"});
  document["model"]["vocab"]["helloĠhello"] = 265;
  CHECK(load_tokenizer(document).encode("hello hello") == Ids{265});
}

TEST_CASE("Splits cut one after another, and what matches nothing cuts nothing") {
  json document = small_tokenizer();
  const auto encode_with = [&](const std::vector<const char*>& patterns) {
    json steps = json::array();
    for (const char* pattern : patterns)
      steps.push_back({{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}});
    steps.push_back({{"type", "ByteLevel"}, {"use_regex", false}});
    document["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
    return load_tokenizer(document).encode("hello");
  };
  CHECK(encode_with({"(?=e)", "x*"}) == Ids{259});
  CHECK(encode_with({"lo", "(?=e)", "x*"}) == Ids{256, 'l', 'l', 'o'});
  CHECK(encode_with({"(?=e)|l+"}) == Ids{256, 257, 'o'});
}

TEST_CASE("spaces are Unicode's, not only ASCII's") {
  json document = small_tokenizer();
  document["model"]["vocab"]["ĠÂ"] = 265;
  document["model"]["merges"].push_back({"Ġ", "Â"});
  // GPT-2's pattern leaves the last of two spaces, here U+00A0, to the next word: the merge across them must not
  // happen.
  CHECK(load_tokenizer(document).encode(" \u00a0hello") == Ids{' ', 0xc2, 0xa0, 259});
}

TEST_CASE("ignore_merges takes a word that is a token at once") {
  json document = small_tokenizer();
  CHECK(load_tokenizer(document).encode("unreachable").size() > 1);
  document["model"]["ignore_merges"] = true;
  CHECK(load_tokenizer(document).encode("unreachable") == Ids{264});
  CHECK(load_tokenizer(document).encode("hello") == Ids{259});
}

TEST_CASE("a template puts special tokens around the text, also from inside a Sequence") {
  json document = small_tokenizer();
  const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const auto special = [](const char* id) { return json{{"SpecialToken", {{"id", id}, {"type_id", 0}}}}; };
  const json processor = {{"type", "TemplateProcessing"},
                          {"single", {special("<s>"), text, special("</s>"), special("</s>")}},
                          {"special_tokens", {{"<s>", {{"ids", {300}}}}, {"</s>", {{"ids", {301, 'x'}}}}}}};
  document["post_processor"] = processor;
  CHECK(load_tokenizer(document).encode("hello") == Ids{300, 259, 301, 'x', 301, 'x'});
  CHECK(load_tokenizer(document).encode("hello", false) == Ids{259});
  document["post_processor"] = {{"type", "Sequence"}, {"processors", {{{"type", "ByteLevel"}}, processor}}};
  CHECK(load_tokenizer(document).encode("") == Ids{300, 301, 'x', 301, 'x'});
}

TEST_CASE("long words and long runs of spaces take time in proportion") {
  const auto seconds = [](const std::string& text) {
    const auto begin = std::chrono::steady_clock::now();
    CHECK(austen().decode(austen().encode(text)) == text);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  for (const char* unit : {"a", " ", "\n", "!", "é", "1", "x "}) {
    std::string text;
    while (text.size() < 300'000) text += unit;
    CHECK(seconds(text + "z") < 10);
  }
}
