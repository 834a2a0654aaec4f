// Reading JSON that may be hostile.
#include "engine/files/json_field.hpp"

#include <limits>
#include <unordered_set>

#include "engine/bad_input.hpp"
#include "engine/files/mapped_file.hpp"

namespace engine {

Json parse_json(std::string_view text, const std::string& thing) {
  constexpr int max_depth = 32;
  std::vector<std::unordered_set<std::string>> keys;  // of each object that is open, outermost first
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth >= max_depth)
      throw BadInput(thing, "JSON at most " + std::to_string(max_depth) + " levels deep", "more");
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) throw BadInput(thing, "each key once", "key " + in_quotes(key) + " twice");
    }
    return true;
  };
  try {
    return Json::parse(text, check);
  } catch (const Json::parse_error& error) {
    throw BadInput(thing, "valid JSON", "an error at byte " + std::to_string(error.byte));
  } catch (const Json::out_of_range&) {
    throw BadInput(thing, "valid JSON", "a number beyond the range of double");
  }
}

Json read_json(const std::filesystem::path& path) { return parse_json(MappedFile(path).text(), path.string()); }

const Json& JsonField::object() const {
  if (!value_->is_object()) fail("an object");
  return *value_;
}

bool JsonField::has(const char* name) const {
  const auto member = object().find(name);
  return member != value_->end() && !member->is_null();
}

JsonField JsonField::at(const std::string& name) const {
  const auto member = object().find(name);
  if (member == value_->end()) throw BadInput(thing(), "field " + in_quotes(name), "none");
  return {*member, file_, name_.empty() ? shortened(name) : name_ + '.' + shortened(name)};
}

std::vector<JsonField> JsonField::elements() const {
  if (!value_->is_array()) fail("an array");
  std::vector<JsonField> fields;
  fields.reserve(value_->size());
  for (const Json& element : *value_)
    fields.push_back({element, file_, name_ + '[' + std::to_string(fields.size()) + ']'});
  return fields;
}

std::vector<std::pair<std::string, JsonField>> JsonField::members() const {
  std::vector<std::pair<std::string, JsonField>> fields;
  for (const auto& member : object().items()) fields.emplace_back(member.key(), at(member.key()));
  return fields;
}

std::int64_t JsonField::integer(std::int64_t lowest, std::int64_t highest) const {
  const bool is_int64 = value_->is_number_unsigned()
                            ? value_->get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()}
                            : value_->is_number_integer();
  if (!is_int64 || value_->get<std::int64_t>() < lowest || value_->get<std::int64_t>() > highest)
    fail("an integer from " + std::to_string(lowest) + " to " + std::to_string(highest));
  return value_->get<std::int64_t>();
}

double JsonField::positive_number() const {
  if (!value_->is_number() || !(value_->get<double>() > 0)) fail("a positive number");
  return value_->get<double>();
}

bool JsonField::boolean() const {
  if (!value_->is_boolean()) fail("true or false");
  return value_->get<bool>();
}

const std::string& JsonField::string() const {
  if (!value_->is_string()) fail("a string");
  return value_->get_ref<const std::string&>();
}

void JsonField::must_be(const Json& expected) const {
  if (*value_ != expected) fail(shortened(expected.dump()));
}

void JsonField::fail(std::string_view expected) const { fail(expected, shortened(value_->dump())); }

void JsonField::fail(std::string_view expected, std::string_view found) const {
  throw BadInput(thing(), expected, found);
}

}  // namespace engine
