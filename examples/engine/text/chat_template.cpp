// Rendering conversations; recognising the template is chat_template_reader.cpp's.
#include "engine/text/chat_template.hpp"

#include <algorithm>
#include <string_view>

#include "engine/bad_input.hpp"
#include "engine/text/unicode.hpp"

namespace engine {
namespace {

TextPart untrusted(std::string_view text) { return {.text = std::string(text), .is_trusted = false}; }

std::string_view without_lines_before(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  return text;
}

std::string_view without_lines_after(std::string_view text) { return text.substr(0, text.find_last_not_of('\n') + 1); }

/// Qwen 3's reading of what an assistant said: <think>thoughts</think>answer.
struct Answer {
  explicit Answer(std::string_view content) : text(content) {
    constexpr std::string_view begin = "<think>", end = "</think>";
    if (content.find(end) == std::string_view::npos) return;
    text = without_lines_before(content.substr(content.rfind(end) + end.size()));
    thoughts = without_lines_after(content.substr(0, content.find(end)));
    if (const std::size_t at = thoughts.rfind(begin); at != std::string_view::npos)
      thoughts.remove_prefix(at + begin.size());
    thoughts = without_lines_before(thoughts);
  }

  std::string_view thoughts;
  std::string_view text;
};

}  // namespace

std::vector<TextPart> ChatTemplate::parts(std::span<const ChatMessage> messages, bool add_generation_prompt) const {
  if (family_ == Family::none) throw BadInput("chat", "a model with a chat template", "one without");
  if (family_ == Family::unknown)
    throw BadInput("chat template", "ChatML, Llama 3's or Mistral's in a known variant", "another");
  if (messages.empty()) throw BadInput("messages", "at least one", "none");
  for (const ChatMessage& message : messages)
    if (message.role != "system" && message.role != "user" && message.role != "assistant")
      throw BadInput("messages: role", R"("system", "user" or "assistant")", in_quotes(message.role));
  if (family_ == Family::mistral) return mistral(messages);
  auto result = family_ == Family::chatml ? chatml(messages) : llama3(messages);
  result.insert(result.begin(), {.text = begin_});
  if (add_generation_prompt) result.push_back({.text = generation_prompt_});
  return result;
}

std::vector<TextPart> ChatTemplate::chatml(std::span<const ChatMessage> messages) const {
  // The newest turn begins behind the last question.
  const auto asks = [](const ChatMessage& message) {
    return message.role == "user" &&
           !(message.content.starts_with("<tool_response>") && message.content.ends_with("</tool_response>"));
  };
  std::size_t question = messages.size() - 1;
  for (std::size_t i = 0; i < messages.size(); ++i)
    if (asks(messages[i])) question = i;

  std::vector<TextPart> parts;
  if (messages.front().role != "system") parts.push_back({.text = default_system_});
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const auto& [role, content] = messages[i];
    parts.push_back({.text = "<|im_start|>" + role + "\n"});
    if (has_thinking_ && role == "assistant") {
      const Answer answer(content);
      const bool is_last = i + 1 == messages.size();
      const bool shows_thoughts = i > question && (is_last || !answer.thoughts.empty());
      if (shows_thoughts) {
        parts.push_back({.text = "<think>\n"});
        parts.push_back(untrusted(without_lines_after(answer.thoughts)));
        parts.push_back({.text = "\n</think>\n\n"});
      }
      parts.push_back(untrusted(shows_thoughts ? without_lines_before(answer.text) : answer.text));
    } else {
      parts.push_back(untrusted(content));
    }
    parts.push_back({.text = "<|im_end|>\n"});
  }
  return parts;
}

std::vector<TextPart> ChatTemplate::llama3(std::span<const ChatMessage> messages) const {
  std::vector<TextPart> parts;
  const auto say = [&](const std::string& role, const std::string& preamble, std::string_view content) {
    parts.push_back({.text = "<|start_header_id|>" + role + "<|end_header_id|>\n\n" + preamble});
    parts.push_back(untrusted(unicode::trimmed(content)));
    parts.push_back({.text = "<|eot_id|>"});
  };
  if (system_preamble_) {
    const bool has_system = messages.front().role == "system";
    say("system", *system_preamble_, has_system ? std::string_view(messages.front().content) : "");
    if (has_system) messages = messages.subspan(1);
  }
  for (const ChatMessage& message : messages) say(message.role, "", message.content);
  return parts;
}

std::vector<TextPart> ChatTemplate::mistral(std::span<const ChatMessage> messages) const {
  const Mistral& m = mistral_;
  std::optional<std::string> system;
  if (messages.front().role == "system") {
    if (m.system == Mistral::System::refused)
      throw BadInput("messages: role", R"("user" or "assistant")", in_quotes(messages.front().role));
    system = messages.front().content;
    messages = messages.subspan(1);
  }
  std::vector<TextPart> parts{{.text = begin_}};
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const auto& [role, content] = messages[i];
    if (const char* const expected = i % 2 == 0 ? "user" : "assistant"; role != expected)
      throw BadInput("messages: role", std::string("user and assistant in turn, now ") + in_quotes(expected) + ",",
                     in_quotes(role));
    if (role == "assistant") {
      parts.push_back({.text = m.assistant_begin});
      parts.push_back(untrusted(m.trims_assistant ? unicode::trimmed(content) : content));
      parts.push_back({.text = m.assistant_end});
      continue;
    }
    parts.push_back({.text = m.user_begin});
    if (system && i == (m.system == Mistral::System::in_first ? 0 : messages.size() - 1)) {
      parts.push_back(untrusted(*system));
      parts.push_back({.text = m.system_end});
    }
    parts.push_back(untrusted(content));
    parts.push_back({.text = m.user_end});
  }
  return parts;
}

std::string ChatTemplate::render(std::span<const ChatMessage> messages, bool add_generation_prompt) const {
  std::string text;
  for (const TextPart& part : parts(messages, add_generation_prompt)) text += part.text;
  return text;
}

std::vector<std::int32_t> ChatTemplate::encode(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                                               bool add_generation_prompt) const {
  return tokenizer.encode(parts(messages, add_generation_prompt));
}

}  // namespace engine
