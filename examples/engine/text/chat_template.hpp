// ChatTemplate: a conversation as the prompt that a chat model was trained on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/text/tokenizer.hpp"

namespace engine {

class JinjaText;

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

/// Three families are written here in C++: ChatML, Llama 3's and Mistral's. Which one a model wants, in which variant,
/// is read out of the Jinja template in its folder; a template that prints its markers in any other way is not known,
/// and nothing is guessed. Tools are not supported. Where Llama 3 asks for today's date, the template's own date
/// stands.
class ChatTemplate {
 public:
  /// Reads chat_template.jinja or else tokenizer_config.json. Throws BadInput if they are damaged; a template that is
  /// missing or not known is complained about when it is used.
  static ChatTemplate load(const std::filesystem::path& dir);

  /// As load, of the Jinja source itself.
  explicit ChatTemplate(const std::string& jinja, const std::string& bos = "", const std::string& eos = "");

  /// The prompt; with `add_generation_prompt`, up to where the assistant's next message begins. What messages hold is
  /// untrusted. Throws BadInput if the template is missing or not known, there are no messages, or the template does
  /// not know one's role or their order.
  std::vector<TextPart> parts(std::span<const ChatMessage> messages, bool add_generation_prompt = true) const;

  /// All parts, joined.
  std::string render(std::span<const ChatMessage> messages, bool add_generation_prompt = true) const;

  /// The ids of all parts: markers are the special tokens, special tokens spelt out in a message are text.
  std::vector<std::int32_t> encode(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                                   bool add_generation_prompt = true) const;

 private:
  enum class Family { none, unknown, chatml, llama3, mistral };

  bool read_chatml(const JinjaText& text);
  bool read_llama3(const JinjaText& text);
  bool read_mistral(const JinjaText& text);
  std::vector<TextPart> chatml(std::span<const ChatMessage> messages) const;
  std::vector<TextPart> llama3(std::span<const ChatMessage> messages) const;
  std::vector<TextPart> mistral(std::span<const ChatMessage> messages) const;

  Family family_ = Family::none;
  std::string begin_;  // stands before everything

  // ChatML
  std::string default_system_;     // the message that comes first where the conversation has no system message
  std::string generation_prompt_;  // with which the assistant's turn begins
  bool has_thinking_ = false;      // Qwen 3: thoughts are kept in the newest turn only

  // Llama 3
  std::optional<std::string> system_preamble_;  // there is always a system message, which begins with this

  // Mistral
  struct Mistral {
    std::string user_begin, user_end;
    std::string assistant_begin, assistant_end;
    bool trims_assistant = false;
    enum class System { refused, in_first, in_last } system = System::refused;  // into which user message it goes
    std::string system_end;
  } mistral_;
};

}  // namespace engine
