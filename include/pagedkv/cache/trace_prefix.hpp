// What a trace holds of the prefix cache's calls: the tokens they name and the options that differ from the defaults.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pagedkv/cache/admission.hpp"
#include "pagedkv/cache/eviction.hpp"
#include "pagedkv/cache/prefix_scope.hpp"
#include "pagedkv/cache/trace.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {
namespace detail {

/// What wide() of an `options` record is. Files hold these numbers: add behind, change none.
enum class TraceOption : std::uint16_t {
  salt,
  model,    // its length; as many bytes follow
  adapter,  // its length; as many bytes follow
  extra,    // begin, and end << 32
  content,  // its length; as many bytes follow; of the extra before
  flags,    // 1: partial_blocks, 2: no_read, 4: no_write, 8: Twins::wait, 16: duplicates are remapped; priority << 8
  expires_at,
  limits,   // max_append, and watermark << 32
  skipped,  // so many tokens at the front are not kept
};

inline constexpr std::size_t bytes_per_record = 12;
inline constexpr std::size_t tokens_per_record = 3;

inline void write_option(Trace& trace, TraceOption option, std::uint64_t value) {
  trace.write(TraceRecord::with(TraceOp::options, value, 0, static_cast<std::uint16_t>(option)));
}

inline void write_text(Trace& trace, TraceOption option, std::string_view text) {
  write_option(trace, option, text.size());
  for (std::size_t begin = 0; begin < text.size(); begin += bytes_per_record) {
    std::uint32_t words[3] = {};
    const std::size_t count = min(text.size() - begin, bytes_per_record);
    for (std::size_t i = 0; i < count; ++i)
      words[i / 4] |= std::uint32_t{static_cast<unsigned char>(text[begin + i])} << (8 * (i % 4));
    trace.write({.op = TraceOp::bytes, .a = words[0], .b = words[1], .c = static_cast<std::int32_t>(words[2])});
  }
}

inline std::uint64_t two_numbers(int low, int high) {
  return static_cast<std::uint32_t>(low) | std::uint64_t{static_cast<std::uint32_t>(high)} << 32;
}

/// All calls have these, so all are written alike; `remaps` stands for publish_and_remap().
inline void write_options(Trace& trace, const AdmitOptions& options, bool remaps = false) {
  if (options.salt != 0) write_option(trace, TraceOption::salt, options.salt);
  if (!options.model.empty()) write_text(trace, TraceOption::model, options.model);
  if (!options.adapter.empty()) write_text(trace, TraceOption::adapter, options.adapter);
  for (const PrefixExtra& extra : options.extras) {
    write_option(trace, TraceOption::extra, two_numbers(extra.begin, extra.end));
    write_text(trace, TraceOption::content, extra.content);
  }
  const std::uint64_t flags = std::uint64_t{options.partial_blocks} | std::uint64_t{options.no_read} << 1 |
                              std::uint64_t{options.no_write} << 2 | std::uint64_t{options.twins == Twins::wait} << 3 |
                              std::uint64_t{remaps} << 4 | std::uint64_t{options.retention.priority} << 8;
  if (flags != 0) write_option(trace, TraceOption::flags, flags);
  if (options.retention.expires_at != Retention::never)
    write_option(trace, TraceOption::expires_at, static_cast<std::uint64_t>(options.retention.expires_at));
  if (options.max_append != AdmitOptions{}.max_append || options.watermark != 0)
    write_option(trace, TraceOption::limits, two_numbers(options.max_append, options.watermark));
}

inline AdmitOptions options_of(const PrefixScope& scope, const Retention& retention = {}) {
  AdmitOptions options{.salt = scope.salt, .model = scope.model, .adapter = scope.adapter, .extras = scope.extras};
  options.retention = retention;
  return options;
}

/// A call on a sequence whose tokens in front of `first` the cache knew already: they are not kept.
inline void write_rest(Trace& trace, std::span<const std::int32_t> tokens, int first) {
  if (first > 0) write_option(trace, TraceOption::skipped, static_cast<std::uint64_t>(first));
  trace.write_tokens(tokens.subspan(static_cast<std::size_t>(first)));
}

/// Each of these is written after its call has returned, while nothing that the call itself did was written
/// (Trace::Pause). `sequence` is the number of its table. Refusals are written too: a replay must refuse as well.
inline void write_admit(Trace& trace, std::uint64_t sequence, std::uint64_t step, std::span<const std::int32_t> tokens,
                        const AdmitOptions& options, bool succeeded) {
  trace.write({.op = TraceOp::admit,
               .succeeded = succeeded,
               .a = static_cast<std::uint32_t>(sequence),
               .b = static_cast<std::uint32_t>(step),
               .c = static_cast<std::int32_t>(tokens.size())});
  write_options(trace, options);
  trace.write_tokens(tokens);
}

/// `tokens` are those of the full committed blocks. The cache compares those of the last block that was published
/// before and stores the ones behind, so `first` is the position where that block begins, or 0. A publication that
/// found no newly full block need not be written: it did nothing.
inline void write_publish(Trace& trace, std::uint64_t sequence, std::span<const std::int32_t> tokens, int first,
                          const PrefixScope& scope, const Retention& retention, bool remaps) {
  trace.write({.op = TraceOp::publish,
               .a = static_cast<std::uint32_t>(sequence),
               .c = static_cast<std::int32_t>(tokens.size())});
  write_options(trace, options_of(scope, retention), remaps);
  write_rest(trace, tokens, first);
}

/// Of `tokens` only those of the block that is announced are read; `first` is where it begins, or 0.
inline void write_announce(Trace& trace, std::uint64_t sequence, std::span<const std::int32_t> tokens, int first,
                           const PrefixScope& scope) {
  trace.write({.op = TraceOp::announce,
               .a = static_cast<std::uint32_t>(sequence),
               .c = static_cast<std::int32_t>(tokens.size())});
  write_options(trace, options_of(scope));
  write_rest(trace, tokens, first);
}

/// `pin` is the PinId, 0 if there is none.
inline void write_pin(Trace& trace, std::span<const std::int32_t> tokens, const PrefixScope& scope, std::uint64_t pin) {
  trace.write({.op = TraceOp::pin,
               .succeeded = pin != 0,
               .a = static_cast<std::uint32_t>(pin),
               .c = static_cast<std::int32_t>(tokens.size())});
  write_options(trace, options_of(scope));
  trace.write_tokens(tokens);
}

inline void write_unpin(Trace& trace, std::uint64_t pin, bool succeeded) {
  trace.write({.op = TraceOp::unpin, .succeeded = succeeded, .a = static_cast<std::uint32_t>(pin)});
}

inline void write_advance(Trace& trace, std::int64_t now) {
  trace.write(TraceRecord::with(TraceOp::advance, static_cast<std::uint64_t>(now)));
}

/// Reads such calls back; keeps its memory from one to the next.
class PrefixCallReader {
 public:
  PrefixCallReader() = default;
  PrefixCallReader(const PrefixCallReader&) = delete;  // the options point into it
  PrefixCallReader& operator=(const PrefixCallReader&) = delete;

  /// Reads the call that `records` begin with, admit, publish, announce or pin. The number of its records; nullopt if
  /// they are not what the functions above write. Skipped tokens become zeros, at most `max_skipped` of them.
  std::optional<std::size_t> read(std::span<const TraceRecord> records, std::int64_t max_skipped) {
    rest_ = records.subspan(1);
    options_ = {};
    remaps_ = false;
    num_skipped_ = 0;
    extras_.clear();
    contents_.clear();
    while (!rest_.empty() && rest_[0].op == TraceOp::options) {
      const TraceRecord option = rest_[0];
      rest_ = rest_.subspan(1);
      if (!read_option(static_cast<TraceOption>(option.detail), option.wide())) return std::nullopt;
    }
    if (contents_.size() != extras_.size()) return std::nullopt;
    for (std::size_t i = 0; i < extras_.size(); ++i) extras_[i].content = contents_[i];
    options_.extras = extras_;
    if (num_skipped_ > max_skipped || !read_tokens(records[0].c)) return std::nullopt;
    return records.size() - rest_.size();
  }

  std::span<const std::int32_t> tokens() const { return tokens_; }
  std::int64_t num_skipped() const { return num_skipped_; }
  const AdmitOptions& options() const { return options_; }  // those that the call has; the scope too
  bool remaps() const { return remaps_; }

 private:
  bool read_option(TraceOption option, std::uint64_t value) {
    const auto low = static_cast<int>(static_cast<std::uint32_t>(value));
    const auto high = static_cast<int>(static_cast<std::uint32_t>(value >> 32));
    switch (option) {
      case TraceOption::salt:
        options_.salt = value;
        return true;
      case TraceOption::model:
        return read_text(value, model_, options_.model);
      case TraceOption::adapter:
        return read_text(value, adapter_, options_.adapter);
      case TraceOption::extra:
        extras_.push_back({.begin = low, .end = high, .content = {}});
        return true;
      case TraceOption::content: {
        std::string_view ignored;
        return read_text(value, contents_.emplace_back(), ignored);
      }
      case TraceOption::flags:
        options_.partial_blocks = (value & 1) != 0;
        options_.no_read = (value & 2) != 0;
        options_.no_write = (value & 4) != 0;
        options_.twins = (value & 8) != 0 ? Twins::wait : Twins::compute;
        remaps_ = (value & 16) != 0;
        options_.retention.priority = static_cast<std::uint8_t>(value >> 8);
        return value >> 16 == 0 && (value & 0xe0) == 0;
      case TraceOption::expires_at:
        options_.retention.expires_at = static_cast<std::int64_t>(value);
        return true;
      case TraceOption::limits:
        options_.max_append = low;
        options_.watermark = high;
        return true;
      case TraceOption::skipped:
        num_skipped_ = static_cast<std::int64_t>(value);
        return num_skipped_ > 0;
    }
    return false;
  }

  bool read_text(std::uint64_t length, std::string& text, std::string_view& view) {
    text.clear();
    if (length > bytes_per_record * rest_.size()) return false;
    for (; text.size() < length; rest_ = rest_.subspan(1)) {
      const TraceRecord& record = rest_[0];
      if (record.op != TraceOp::bytes) return false;
      const std::uint32_t words[3] = {record.a, record.b, static_cast<std::uint32_t>(record.c)};
      const std::size_t count = min<std::size_t>(length - text.size(), bytes_per_record);
      for (std::size_t i = 0; i < count; ++i) text.push_back(static_cast<char>(words[i / 4] >> (8 * (i % 4)) & 0xff));
    }
    view = text;
    return true;
  }

  bool read_tokens(std::int64_t count) {
    const std::int64_t num_kept = count - num_skipped_;
    if (num_kept < 0 || ceil_div<std::int64_t>(num_kept, tokens_per_record) > std::ssize(rest_)) return false;
    tokens_.assign(static_cast<std::size_t>(num_skipped_), 0);
    while (std::ssize(tokens_) < count) {
      const TraceRecord& record = rest_[0];
      if (record.op != TraceOp::tokens) return false;
      const std::int32_t three[3] = {static_cast<std::int32_t>(record.a), static_cast<std::int32_t>(record.b),
                                     record.c};
      tokens_.insert(tokens_.end(), three, three + min<std::int64_t>(count - std::ssize(tokens_), tokens_per_record));
      rest_ = rest_.subspan(1);
    }
    return true;
  }

  std::span<const TraceRecord> rest_;
  AdmitOptions options_;
  bool remaps_ = false;
  std::int64_t num_skipped_ = 0;
  std::string model_;
  std::string adapter_;
  std::vector<std::string> contents_;  // of extras_; a vector of strings may move them until all are read
  std::vector<PrefixExtra> extras_;
  std::vector<std::int32_t> tokens_;
};

}  // namespace detail
}  // namespace v0
}  // namespace pagedkv
