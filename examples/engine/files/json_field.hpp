// JsonField: a JSON value that knows its way from the file, so that every complaint names the field.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace engine {

using Json = nlohmann::json;

/// Parses untrusted text. Throws BadInput, naming `thing`, on a syntax error, on nesting deeper than 32 levels and on a
/// key that an object holds twice (where readers differ in which one they believe).
Json parse_json(std::string_view text, const std::string& thing);

/// parse_json of a whole file, named by its path.
Json read_json(const std::filesystem::path& path);

/// A view of a value inside a Json that must outlive it. Every accessor throws BadInput if the value is not of its
/// kind.
class JsonField {
 public:
  /// The top of `file`. Messages open with "<file>: <name>", e.g. "config.json: rope_scaling.rope_type".
  JsonField(const Json& value, std::string file) : JsonField(value, std::move(file), "") {}

  const Json& value() const { return *value_; }
  const std::string& file() const { return file_; }

  /// The member is there and is not null.
  bool has(const char* name) const;
  JsonField at(const std::string& name) const;
  std::vector<JsonField> elements() const;
  std::vector<std::pair<std::string, JsonField>> members() const;

  std::int64_t integer(std::int64_t lowest, std::int64_t highest) const;
  double positive_number() const;
  bool boolean() const;
  const std::string& string() const;

  /// Throws unless the value is `expected`.
  void must_be(const Json& expected) const;
  /// Throws "<file>: <name>: <expected> expected, <this value> found".
  [[noreturn]] void fail(std::string_view expected) const;
  [[noreturn]] void fail(std::string_view expected, std::string_view found) const;

 private:
  JsonField(const Json& value, std::string file, std::string name)
      : value_(&value), file_(std::move(file)), name_(std::move(name)) {}
  const Json& object() const;
  std::string thing() const { return name_.empty() ? file_ : file_ + ": " + name_; }

  const Json* value_;
  std::string file_;
  std::string name_;
};

}  // namespace engine
