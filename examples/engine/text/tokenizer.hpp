// Tokenizer: text to token ids and back, as a Hugging Face tokenizer.json of the byte-level BPE kind says.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/text/bpe.hpp"
#include "engine/text/regex.hpp"
#include "engine/text/word_table.hpp"

namespace engine {

/// A stretch of a prompt. Untrusted text, such as what a user typed, must not be able to end its turn or begin another.
struct TextPart {
  std::string text;
  bool is_trusted = true;  // special tokens spelt out in it become their ids
};

/// Immutable once made; any number of threads may use one.
class Tokenizer {
 public:
  /// Reads `dir`/tokenizer.json. Throws BadInput if it is damaged or asks for anything that is not done here (another
  /// normalizer than NFC, another model than BPE, ...): ids would differ from the ones the model was trained on.
  static Tokenizer load(const std::filesystem::path& dir);

  /// Special and added tokens spelt out in `text` become their ids. With `add_special`, the begin token and its like
  /// are put around as the file says. Throws BadInput if `text` is not valid UTF-8.
  /// Bytes that the vocabulary cannot spell are left out, or become its unknown token.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special = true) const;

  /// The ids of all parts, joined before words are cut, with nothing put around. A special token that reaches into an
  /// untrusted part is text there; added tokens that are not special are found everywhere.
  std::vector<std::int32_t> encode(std::span<const TextPart> parts) const;

  /// Bytes that form no character come out as U+FFFD. Ids that name no token (an embedding may have spare rows) come
  /// out as nothing. Without `skip_special`, special tokens are spelt out.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = true) const;

  /// What `id` adds to a text: any bytes, not always whole characters.
  std::string_view token_bytes(std::int32_t id) const;
  bool is_special(std::int32_t id) const;

  /// `token` as the file spells it, e.g. "<|end_of_text|>".
  std::optional<std::int32_t> token_to_id(const std::string& token) const;

  /// One more than the largest id.
  std::int32_t vocab_size() const { return static_cast<std::int32_t>(tokens_.size()); }

 private:
  friend class TokenizerReader;

  struct Token {
    std::string bytes;
    bool special = false;
  };
  struct AddedToken {
    std::string content;
    std::int32_t id;
  };

  using AddedTokens = std::array<std::vector<AddedToken>, 256>;  // by first byte; longest first
  struct Prompt;

  Tokenizer() = default;
  const AddedToken* added_at(const Prompt& prompt, std::size_t at, std::size_t end, const AddedTokens& tokens) const;
  void encode_stretch(const Prompt& prompt, std::size_t begin, std::size_t end, std::span<const AddedTokens> passes,
                      std::vector<std::int32_t>& ids) const;
  void encode_plain(std::string_view text, std::vector<std::int32_t>& ids) const;

  std::vector<Token> tokens_;                            // by id
  std::unordered_map<std::string, std::int32_t> vocab_;  // as the file spells them, added tokens included
  std::array<AddedTokens, 2> added_;                     // those found first, and those found in what is left
  bool nfc_ = false;                                     // what is left is brought into normal form C
  std::vector<Regex> patterns_;                          // each cuts the pieces of the one before
  WordTable words_;                                      // words that are one token, found without merging
  std::optional<Bpe> bpe_;
  std::vector<std::int32_t> prefix_;
  std::vector<std::int32_t> suffix_;
};

/// Decodes ids as they are sampled: the pieces, joined, are Tokenizer::decode of all ids, and none ends within a
/// character. The tokenizer must outlive it.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  /// Returns the characters that `id` completes, often none for text of several bytes a character.
  std::string push(std::int32_t id);
  /// Returns U+FFFD if the ids ended within a character, and starts anew.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;
};

}  // namespace engine
