// Encoding and decoding; reading the file is tokenizer_reader.cpp's.
#include "engine/text/tokenizer.hpp"

#include <algorithm>

#include "engine/bad_input.hpp"
#include "engine/text/unicode.hpp"
#include "engine/text/utf8.hpp"

namespace engine {

/// All parts of a prompt, joined.
struct Tokenizer::Prompt {
  struct Range {
    std::size_t begin;
    std::size_t end;
  };
  std::string_view text;
  std::vector<Range> untrusted = {};  // ascending

  bool is_trusted(std::size_t begin, std::size_t end) const {
    const auto range = std::ranges::upper_bound(untrusted, begin, {}, &Range::end);
    return range == untrusted.end() || range->begin >= end;
  }
};

namespace {

void require_utf8(std::string_view text) {
  if (const std::size_t bad = utf8::find_invalid(text); bad != std::string_view::npos)
    throw BadInput("text", "valid UTF-8", "a broken character at byte " + std::to_string(bad));
}

}  // namespace

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  require_utf8(text);
  std::vector<std::int32_t> ids;
  if (add_special) ids = prefix_;
  encode_stretch({.text = text}, 0, text.size(), added_, ids);
  if (add_special) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  return ids;
}

std::vector<std::int32_t> Tokenizer::encode(std::span<const TextPart> parts) const {
  std::string text;
  Prompt prompt;
  for (const TextPart& part : parts) {
    require_utf8(part.text);
    if (!part.is_trusted && !part.text.empty())
      prompt.untrusted.push_back({.begin = text.size(), .end = text.size() + part.text.size()});
    text += part.text;
  }
  prompt.text = text;
  std::vector<std::int32_t> ids;
  encode_stretch(prompt, 0, text.size(), added_, ids);
  return ids;
}

const Tokenizer::AddedToken* Tokenizer::added_at(const Prompt& prompt, std::size_t at, std::size_t end,
                                                 const AddedTokens& tokens) const {
  for (const AddedToken& token : tokens[static_cast<unsigned char>(prompt.text[at])])
    if (prompt.text.substr(at, end - at).starts_with(token.content) &&
        (!is_special(token.id) || prompt.is_trusted(at, at + token.content.size())))
      return &token;
  return nullptr;
}

void Tokenizer::encode_stretch(const Prompt& prompt, std::size_t begin, std::size_t end,
                               std::span<const AddedTokens> passes, std::vector<std::int32_t>& ids) const {
  if (passes.empty()) return encode_plain(prompt.text.substr(begin, end - begin), ids);
  std::size_t plain_begin = begin;
  for (std::size_t i = begin; i < end;) {
    const AddedToken* const added = added_at(prompt, i, end, passes.front());
    if (added == nullptr) {
      ++i;
      continue;
    }
    encode_stretch(prompt, plain_begin, i, passes.subspan(1), ids);
    ids.push_back(added->id);
    plain_begin = i += added->content.size();
  }
  encode_stretch(prompt, plain_begin, end, passes.subspan(1), ids);
}

void Tokenizer::encode_plain(std::string_view text, std::vector<std::int32_t>& ids) const {
  if (text.empty()) return;
  std::optional<std::string> normal;
  if (nfc_) normal = unicode::to_nfc(text);
  std::vector<std::string_view> words{normal ? *normal : text};
  std::vector<std::string_view> pieces;
  for (const Regex& pattern : patterns_) {
    pieces.clear();
    pattern.split(words, pieces);
    std::swap(words, pieces);
  }
  for (const std::string_view word : words) {
    if (const auto id = words_.find(word))
      ids.push_back(*id);
    else
      bpe_->encode(word, ids);
  }
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  StreamDecoder decoder(*this, skip_special);
  std::string text;
  for (const std::int32_t id : ids) text += decoder.push(id);
  return text + decoder.flush();
}

std::string_view Tokenizer::token_bytes(std::int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return tokens_[static_cast<std::size_t>(id)].bytes;
}

bool Tokenizer::is_special(std::int32_t id) const {
  return id >= 0 && id < vocab_size() && tokens_[static_cast<std::size_t>(id)].special;
}

std::optional<std::int32_t> Tokenizer::token_to_id(const std::string& token) const {
  const auto entry = vocab_.find(token);
  return entry == vocab_.end() ? std::nullopt : std::optional(entry->second);
}

std::string StreamDecoder::push(std::int32_t id) {
  if (skip_special_ && tokenizer_->is_special(id)) return {};
  pending_ += tokenizer_->token_bytes(id);
  return utf8::take_whole(pending_);
}

std::string StreamDecoder::flush() {
  const bool unfinished = !pending_.empty();
  pending_.clear();
  return unfinished ? "\uFFFD" : "";
}

}  // namespace engine
