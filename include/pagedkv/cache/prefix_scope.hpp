// PrefixScope: what besides tokens must be equal for two prefixes to share K and V, and its bytes in a cache key.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "pagedkv/core/error.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

/// The tokens begin .. end - 1 are placeholders for something else, e.g. an image; `content` names it (its hash).
struct PrefixExtra {
  int begin;
  int end;
  std::string_view content;
};

/// Two requests share blocks only if all of this is equal. Every field has its own tag and length in the key, so an
/// adapter named "x" is not a model named "x".
struct PrefixScope {
  std::uint64_t salt = 0;                    // keeps tenants apart
  std::string_view model = {};               // model, revision, dtype and layout, if one pool serves several
  std::string_view adapter = {};             // a LoRA's name and version
  std::span<const PrefixExtra> extras = {};  // by position, not overlapping; a hit never ends inside one

  void validate() const {
    int end = 0;
    for (const PrefixExtra& extra : extras) {
      require(extra.begin >= end, "PrefixScope: extra.begin at least", end, extra.begin);
      require(extra.end > extra.begin, "PrefixScope: extra.end above", extra.begin, extra.end);
      end = extra.end;
    }
  }
};

namespace detail {

inline void append_number(std::string& bytes, std::uint64_t value) {
  char little_endian[8];
  for (int i = 0; i < 8; ++i) little_endian[i] = static_cast<char>((value >> (8 * i)) & 0xff);
  bytes.append(little_endian, 8);
}

inline void append_field(std::string& bytes, char tag, std::string_view value) {
  bytes.push_back(tag);
  append_number(bytes, value.size());
  bytes += value;
}

/// The key of the root of all prefixes of a scope.
inline void write_scope_key(const PrefixScope& scope, std::string& bytes) {
  bytes.assign(1, 's');
  append_number(bytes, scope.salt);
  append_field(bytes, 'm', scope.model);
  append_field(bytes, 'a', scope.adapter);
}

inline std::string scope_key(const PrefixScope& scope) {
  std::string bytes;
  write_scope_key(scope, bytes);
  return bytes;
}

/// The first extra that ends behind `position`.
inline auto first_extra_behind(std::span<const PrefixExtra> extras, int position) {
  return std::partition_point(extras.begin(), extras.end(),
                              [position](const PrefixExtra& extra) { return extra.end <= position; });
}

/// What the extras add to the key of the block with the positions begin .. begin + block_size - 1; empty without
/// extras.
inline std::string extras_key(std::span<const PrefixExtra> extras, int begin, int block_size) {
  std::string bytes;
  const std::int64_t end = std::int64_t{begin} + block_size;
  for (auto at = first_extra_behind(extras, begin); at != extras.end() && at->begin < end; ++at) {
    const PrefixExtra& extra = *at;
    const int first = max(extra.begin, begin);
    const int last = static_cast<int>(min<std::int64_t>(extra.end, end));
    bytes.push_back('x');
    append_number(bytes, static_cast<std::uint64_t>(first - begin));        // where it starts in the block
    append_number(bytes, static_cast<std::uint64_t>(last - first));         // how much of it is in the block
    append_number(bytes, static_cast<std::uint64_t>(first - extra.begin));  // which part of it
    append_field(bytes, 'c', extra.content);
  }
  return bytes;
}

/// The largest position <= `position` that is not inside an extra.
inline int outside_extras(std::span<const PrefixExtra> extras, int position) {
  for (const PrefixExtra& extra : extras)
    if (extra.begin < position && position < extra.end) return extra.begin;
  return position;
}

}  // namespace detail

}  // namespace v0
}  // namespace pagedkv
