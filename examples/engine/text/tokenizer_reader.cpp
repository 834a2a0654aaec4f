// Reading tokenizer.json: every part is either done as written or refused, because a wrong id is a silent error.
#include <algorithm>
#include <optional>

#include "engine/bad_input.hpp"
#include "engine/files/json_field.hpp"
#include "engine/text/tokenizer.hpp"

namespace engine {

/// Fills a Tokenizer part by part; each function reads one member of the file.
class TokenizerReader {
 public:
  explicit TokenizerReader(const JsonField& root) : root_(root) {}

  Tokenizer read() {
    // "truncation" and "padding" are ignored on purpose: they are settings of batches, not of the tokenizer.
    if (root_.has("normalizer")) read_normalizer(root_.at("normalizer"));
    read_vocab(root_.at("model"));
    if (root_.has("added_tokens")) read_added_tokens(root_.at("added_tokens"));
    read_merges(root_.at("model"));
    collect_words(root_.at("model"));
    read_pre_tokenizer(root_.at("pre_tokenizer"));
    if (root_.has("post_processor")) read_post_processor(root_.at("post_processor"));
    root_.at("decoder").at("type").must_be("ByteLevel");
    return std::move(tokenizer_);
  }

 private:
  // Bounds the memory that a small file can ask for; about four times the largest vocabulary in use.
  static constexpr std::int64_t max_id = (1 << 20) - 1;

  void add_token(const std::string& spelling, const JsonField& id_field, std::string bytes) {
    const auto id = static_cast<std::int32_t>(id_field.integer(0, max_id));
    if (id >= tokenizer_.vocab_size()) {
      tokenizer_.tokens_.resize(static_cast<std::size_t>(id) + 1);
      is_taken_.resize(tokenizer_.tokens_.size(), false);
    }
    const auto [entry, is_new] = tokenizer_.vocab_.emplace(spelling, id);
    if (entry->second != id) id_field.fail("the vocabulary's id, " + std::to_string(entry->second) + ",");
    if (is_new && is_taken_[static_cast<std::size_t>(id)]) id_field.fail("an id that no other token has");
    is_taken_[static_cast<std::size_t>(id)] = true;
    tokenizer_.tokens_[static_cast<std::size_t>(id)].bytes = std::move(bytes);
  }

  std::int32_t id_of(const std::string& spelling, const JsonField& where) const {
    const auto id = tokenizer_.token_to_id(spelling);
    if (!id) where.fail("a token of the vocabulary", in_quotes(spelling));
    return *id;
  }

  /// NFC, or a Sequence of it or of nothing.
  void read_normalizer(const JsonField& field) {
    if (field.at("type").value() == "Sequence") {
      for (const JsonField& step : field.at("normalizers").elements()) read_normalizer(step);
      return;
    }
    field.at("type").must_be("NFC");
    tokenizer_.nfc_ = true;
  }

  void read_vocab(const JsonField& model) {
    if (model.has("type")) model.at("type").must_be("BPE");
    const std::pair<const char*, Json> done_here[] = {{"dropout", 0}, {"byte_fallback", false}};
    for (const auto& [name, value] : done_here)
      if (model.has(name)) model.at(name).must_be(value);
    for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (model.has(name)) model.at(name).must_be("");
    for (const auto& [spelling, id] : model.at("vocab").members()) add_token(spelling, id, bytes_of(spelling));
  }

  void read_added_tokens(const JsonField& added_tokens) {
    for (const JsonField& token : added_tokens.elements()) {
      const std::string& content = token.at("content").string();
      if (content.empty()) token.at("content").fail("a token");
      for (const char* name : {"single_word", "lstrip", "rstrip"})
        if (token.has(name)) token.at(name).must_be(false);
      add_token(content, token.at("id"), bytes_of(content));
      const std::int32_t id = id_of(content, token);
      const bool special = token.has("special") && token.at("special").boolean();
      tokenizer_.tokens_[static_cast<std::size_t>(id)].special = special;
      // Normalized tokens are looked for in what the others leave; where there is a normalizer, in its output.
      const bool normalized = token.has("normalized") && token.at("normalized").boolean();
      if (normalized && tokenizer_.nfc_) token.fail("normalized: false beside a normalizer");
      tokenizer_.added_[normalized][static_cast<unsigned char>(content.front())].push_back({content, id});
    }
    for (auto& pass : tokenizer_.added_)
      for (auto& tokens : pass)
        std::ranges::stable_sort(tokens, std::greater<>{}, [](const auto& token) { return token.content.size(); });
  }

  void read_merges(const JsonField& model) {
    std::optional<std::int32_t> unknown;
    if (model.has("unk_token")) unknown = id_of(model.at("unk_token").string(), model.at("unk_token"));
    std::array<std::int32_t, 256> byte_ids{};
    for (unsigned byte = 0; byte < 256; ++byte) {
      const auto id = tokenizer_.token_to_id(std::string(symbol_of(static_cast<unsigned char>(byte))));
      if (!id && unknown && model.has("fuse_unk")) model.at("fuse_unk").must_be(false);
      byte_ids[byte] = id.value_or(unknown.value_or(Bpe::no_token));
    }
    tokenizer_.bpe_.emplace(byte_ids);
    for (const JsonField& merge : model.at("merges").elements()) {
      const auto [left, right] = halves_of(merge);
      const std::int32_t left_id = id_of(left, merge);
      const std::int32_t right_id = id_of(right, merge);
      const std::int32_t merged = id_of(left + right, merge);
      // What spells a special token is found before words are cut; where it shall stay text, no merge may lead there.
      if (!tokenizer_.is_special(merged)) tokenizer_.bpe_->add_merge(left_id, right_id, merged);
    }
  }

  /// A word that is a token is that token where the merges lead to it; with ignore_merges, wherever they lead.
  void collect_words(const JsonField& model) {
    const bool ignore_merges = model.has("ignore_merges") && model.at("ignore_merges").boolean();
    std::vector<std::int32_t> merged;
    for (const auto& [spelling, id_field] : model.at("vocab").value().items()) {
      const auto id = id_field.get<std::int32_t>();
      const auto& [bytes, special] = tokenizer_.tokens_[static_cast<std::size_t>(id)];
      if (special || bytes.empty() || spelling_of(bytes) != spelling) continue;
      merged.clear();
      if (!ignore_merges) tokenizer_.bpe_->encode(bytes, merged);
      if (ignore_merges || merged == std::vector{id}) tokenizer_.words_.add(bytes, id);
    }
  }

  /// A merge is written as ["a", "b"] or, in older files, as "a b".
  static std::pair<std::string, std::string> halves_of(const JsonField& merge) {
    if (merge.value().is_array()) {
      const auto halves = merge.elements();
      if (halves.size() != 2) merge.fail("two tokens");
      return {halves[0].string(), halves[1].string()};
    }
    const std::string& text = merge.string();
    const std::size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) merge.fail("two tokens");
    return {text.substr(0, space), text.substr(space + 1)};
  }

  /// ByteLevel, or a Sequence of Splits and Digits that ends with it.
  void read_pre_tokenizer(const JsonField& field) {
    std::vector<JsonField> steps{field};
    if (field.at("type").string() == "Sequence") steps = field.at("pretokenizers").elements();
    if (steps.empty()) field.fail("ByteLevel at the end", "no pre-tokenizer");
    const JsonField last = steps.back();
    steps.pop_back();
    for (const JsonField& step : steps) read_cut(step);
    last.at("type").must_be("ByteLevel");
    if (last.has("add_prefix_space")) last.at("add_prefix_space").must_be(false);
    if (!last.has("use_regex") || last.at("use_regex").boolean())
      // GPT-2's words (Radford et al. 2019), which ByteLevel implies.
      add_pattern(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)");
  }

  void read_cut(const JsonField& step) {
    if (step.at("type").value() == "Digits") {
      const bool individual = step.has("individual_digits") && step.at("individual_digits").boolean();
      return add_pattern(individual ? R"(\p{N})" : R"(\p{N}+)");
    }
    if (step.at("type").value() != "Split") step.at("type").fail(R"("Split" or "Digits")");
    step.at("behavior").must_be("Isolated");
    if (step.has("invert")) step.at("invert").must_be(false);
    add_pattern(step.at("pattern").at("Regex").string());
  }

  void add_pattern(const std::string& pattern) { tokenizer_.patterns_.emplace_back(pattern, root_.file() + ": Regex"); }

  /// TemplateProcessing, a Sequence that holds one, or ByteLevel, which moves offsets only.
  void read_post_processor(const JsonField& field) {
    const std::string& type = field.at("type").string();
    if (type == "ByteLevel") return;
    if (type == "Sequence") {
      for (const JsonField& step : field.at("processors").elements()) read_post_processor(step);
      return;
    }
    field.at("type").must_be("TemplateProcessing");
    if (has_template_) field.fail("one TemplateProcessing", "a second");
    has_template_ = true;
    int num_texts = 0;
    for (const JsonField& piece : field.at("single").elements()) {
      if (piece.has("Sequence")) {
        ++num_texts;
        continue;
      }
      auto& ids = num_texts == 0 ? tokenizer_.prefix_ : tokenizer_.suffix_;
      const JsonField token = field.at("special_tokens").at(piece.at("SpecialToken").at("id").string());
      for (const JsonField& id : token.at("ids").elements())
        ids.push_back(static_cast<std::int32_t>(id.integer(0, tokenizer_.vocab_size() - 1)));
    }
    if (num_texts != 1) field.at("single").fail("one Sequence", std::to_string(num_texts));
  }

  JsonField root_;
  Tokenizer tokenizer_;
  std::vector<bool> is_taken_;  // by id
  bool has_template_ = false;
};

Tokenizer Tokenizer::load(const std::filesystem::path& dir) {
  const auto path = dir / "tokenizer.json";
  const Json document = read_json(path);
  return TokenizerReader(JsonField(document, path.string())).read();
}

}  // namespace engine
