// Recognising a model's chat template: every tag that prints a marker must be one that the renderers know.
#include <algorithm>
#include <string_view>
#include <utility>

#include "engine/files/json_field.hpp"
#include "engine/files/mapped_file.hpp"
#include "engine/text/chat_template.hpp"
#include "engine/text/jinja_text.hpp"

namespace engine {
namespace {

/// A special token of tokenizer_config.json: a string, or an object that holds it; "" if there is none.
std::string read_token(const JsonField& config, const char* name) {
  if (!config.has(name)) return "";
  const JsonField field = config.at(name);
  return field.value().is_object() ? field.at("content").string() : field.string();
}

/// One template, or several of which the one named "default" is for conversations.
std::string read_jinja(const JsonField& config) {
  if (!config.has("chat_template")) return "";
  const JsonField field = config.at("chat_template");
  if (!field.value().is_array()) return field.string();
  for (const JsonField& named : field.elements())
    if (named.at("name").value() == "default") return named.at("template").string();
  return "";
}

/// `tag` is one literal: its text.
std::optional<std::string> only_literal(std::string_view tag) {
  if (tag.size() < 2 || tag.front() != '\2' || tag.find('\3') != tag.size() - 1) return std::nullopt;
  return std::string(tag.substr(1, tag.size() - 2));
}

/// Takes `begin` from the front of `text`.
bool take(std::string_view& text, std::string_view begin) {
  if (!text.starts_with(begin)) return false;
  text.remove_prefix(begin.size());
  return true;
}

std::optional<std::string> take_literal(std::string_view& text) {
  if (!text.starts_with('\2')) return std::nullopt;
  const std::string_view literal = text.substr(1, text.find('\3') - 1);
  text.remove_prefix(literal.size() + 2);
  return std::string(literal);
}

}  // namespace

ChatTemplate ChatTemplate::load(const std::filesystem::path& dir) {
  std::string jinja, bos, eos;
  if (const auto path = dir / "tokenizer_config.json"; std::filesystem::exists(path)) {
    const Json document = read_json(path);
    const JsonField config(document, path.string());
    bos = read_token(config, "bos_token");
    eos = read_token(config, "eos_token");
    jinja = read_jinja(config);
  }
  if (const auto path = dir / "chat_template.jinja"; std::filesystem::exists(path)) jinja = MappedFile(path).text();
  return ChatTemplate(jinja, bos, eos);
}

ChatTemplate::ChatTemplate(const std::string& jinja, const std::string& bos, const std::string& eos) {
  if (jinja.empty()) return;
  family_ = Family::unknown;
  if (jinja.find_first_of("\2\3") != std::string::npos) return;
  const JinjaText text(jinja);
  if (text.prints_between_tags()) return;
  for (const auto& [family, is_it] : {std::pair{Family::chatml, &ChatTemplate::read_chatml},
                                      {Family::llama3, &ChatTemplate::read_llama3},
                                      {Family::mistral, &ChatTemplate::read_mistral}})
    if ((this->*is_it)(text)) family_ = family;
  if (text.has("bos_token")) begin_ = bos;
  mistral_.assistant_end = eos + mistral_.assistant_end;
}

bool ChatTemplate::read_chatml(const JinjaText& text) {
  const std::string message = jinja_literal("<|im_start|>") + "+message.role+" + jinja_literal("\n");
  const std::string end = jinja_literal("<|im_end|>\n");
  const std::string thinking = jinja_literal("<|im_start|>") + "+message.role+" + jinja_literal("\n<think>\n") +
                               "+reasoning_content.strip(" + jinja_literal("\n") + ")+" +
                               jinja_literal("\n</think>\n\n") + "+content.lstrip(" + jinja_literal("\n") + ")";
  // Tags that print only part of a message stand in what is for tools, and in Qwen 3's handling of thoughts.
  const std::string known[] = {message + "+message.content+" + end,
                               message + "+content+" + end,
                               message + "+content",
                               thinking,
                               jinja_literal("<|im_start|>") + "+message.role",
                               jinja_literal("<|im_start|>user"),
                               jinja_literal("<|im_start|>system\n"),
                               jinja_literal("<|im_start|>system\n") + "+messages[0].content+" + end};
  has_thinking_ = text.has(thinking);
  if (!text.has(known[0]) && !text.has(known[1])) return false;
  if (text.has("|trim") || (text.has("think>") && !has_thinking_)) return false;
  for (const std::string& tag : text.tags()) {
    if (tag.find("bos_token") != std::string::npos && tag != "bos_token") return false;
    if (tag.find("<|im_start|>") == std::string::npos || std::ranges::find(known, tag) != std::end(known)) continue;
    std::string literal = only_literal(tag).value_or("");
    constexpr std::string_view system = "<|im_start|>system\n", assistant = "<|im_start|>assistant\n";
    const bool is_system = literal.starts_with(system) && literal.ends_with("<|im_end|>\n");
    if (!is_system && !literal.starts_with(assistant)) return false;
    std::string& kept = is_system ? default_system_ : generation_prompt_;
    if (!kept.empty() && kept != literal) return false;
    kept = std::move(literal);
  }
  return !generation_prompt_.empty();
}

bool ChatTemplate::read_llama3(const JinjaText& text) {
  const std::string begin = "<|start_header_id|>", end = "<|end_header_id|>\n\n";
  if (!text.has(jinja_literal(begin) + "+message.role+" + jinja_literal(end) + "+message.content|trim+" +
                jinja_literal("<|eot_id|>")))
    return false;
  generation_prompt_ = begin + "assistant" + end;
  if (!text.has(jinja_literal(generation_prompt_)) || !text.has("bos_token")) return false;
  if (!text.has(jinja_literal(begin + "system" + end))) return true;
  // Llama 3.1 and later always have a system message, which begins with dates.
  std::string cutoff, date;
  for (const std::string& tag : text.tags()) {
    std::string_view code = tag;
    if (const auto literal = only_literal(tag); literal && literal->starts_with("Cutting Knowledge Date: "))
      cutoff = *literal;
    if (take(code, "setdate_string=") && code.starts_with('\2')) date = take_literal(code).value_or("");
  }
  system_preamble_ = cutoff + "Today Date: " + date + "\n\n";
  return !cutoff.empty() && !date.empty() &&
         text.has(jinja_literal("Today Date: ") + "+date_string+" + jinja_literal("\n\n"));
}

bool ChatTemplate::read_mistral(const JinjaText& text) {
  Mistral& m = mistral_;
  bool has_user = false, has_assistant = false;
  for (const std::string& tag : text.tags()) {
    std::string_view code = tag;
    if (tag.find("[INST]") != std::string::npos) {
      const std::string begin = take_literal(code).value_or("");
      if (!take(code, "+")) return false;
      if (take(code, "system_message+")) {
        m.system = text.has("loop.lastandsystem_message") ? Mistral::System::in_last : Mistral::System::in_first;
        if (m.system == Mistral::System::in_first && !text.has("loop.firstandsystem_message")) return false;
        m.system_end = take_literal(code).value_or("");
        if (!take(code, "+")) return false;
      }
      if (!take(code, "message.content+")) return false;
      const std::string end = take_literal(code).value_or("");
      if (!code.empty() || (has_user && (begin != m.user_begin || end != m.user_end))) return false;
      m.user_begin = begin;
      m.user_end = end;
      has_user = true;
    } else if (tag.find("message.content") != std::string::npos && tag.find("+eos_token") != std::string::npos) {
      m.assistant_begin = take_literal(code).value_or("");
      if (!m.assistant_begin.empty() && !take(code, "+")) return false;
      if (!take(code, "message.content") || has_assistant) return false;
      m.trims_assistant = take(code, "|trim");
      if (!take(code, "+eos_token")) return false;
      if (take(code, "+")) m.assistant_end = take_literal(code).value_or("");
      if (!code.empty()) return false;
      has_assistant = true;
    }
  }
  return has_user && has_assistant && !text.has("[SYSTEM_PROMPT]") && !text.has("<<SYS>>");
}

}  // namespace engine
