// Encoding and decoding; reading the file is tokenizer_reader.cpp's.
#include "engine/tokenizer.hpp"

#include "engine/bad_input.hpp"
#include "engine/utf8.hpp"

namespace engine {

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  if (const std::size_t bad = utf8::find_invalid(text); bad != std::string_view::npos)
    throw BadInput("text", "valid UTF-8", "a broken character at byte " + std::to_string(bad));
  std::vector<std::int32_t> ids;
  if (add_special) ids = prefix_;
  std::size_t plain_begin = 0;
  for (std::size_t i = 0; i < text.size();) {
    const AddedToken* const added = added_at(text.substr(i));
    if (added == nullptr) {
      ++i;
      continue;
    }
    encode_plain(text.substr(plain_begin, i - plain_begin), ids);
    ids.push_back(added->id);
    plain_begin = i += added->content.size();
  }
  encode_plain(text.substr(plain_begin), ids);
  if (add_special) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  return ids;
}

const Tokenizer::AddedToken* Tokenizer::added_at(std::string_view text) const {
  for (const AddedToken& token : added_[static_cast<unsigned char>(text.front())])
    if (text.starts_with(token.content)) return &token;
  return nullptr;
}

void Tokenizer::encode_plain(std::string_view text, std::vector<std::int32_t>& ids) const {
  if (text.empty()) return;
  std::vector<std::string_view> words{text};
  for (const Regex& pattern : patterns_) {
    std::vector<std::string_view> pieces;
    for (const std::string_view word : words) pattern.split(word, pieces);
    words = std::move(pieces);
  }
  for (const std::string_view word : words) encode_word(word, ids);
}

void Tokenizer::encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
  if (ignore_merges_) {
    std::string spelling;
    for (const char byte : word) spelling += symbol_of(static_cast<unsigned char>(byte));
    if (const auto token = vocab_.find(spelling); token != vocab_.end()) {
      ids.push_back(token->second);
      return;
    }
  }
  bpe_->encode(word, ids);
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
