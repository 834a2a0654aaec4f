// A trace as bytes, for a file: little-endian on every machine, in pieces that say how long they are and what they sum
// to.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/hash.hpp"
#include "pagedkv/cache/trace.hpp"
#include "pagedkv/core/error.hpp"

namespace pagedkv {
inline namespace v0 {

/// The bytes or records are no trace, or not one of this allocator and cache.
class TraceError : public Error {
 public:
  using Error::Error;
};

/// The options are those of the allocator that was recorded.
struct SavedTrace {
  BlockAllocatorOptions options;
  std::vector<TraceRecord> records;
};

/// What to do with a last piece that is not there in full: its writer was killed.
enum class CutEnd { refuse, drop };

namespace detail {

inline constexpr std::uint32_t trace_magic = 0x31746b70u;  // "pkt1"; the last character is the version
inline constexpr std::size_t trace_unit = 16;              // bytes of the header, of a piece's head, of a record

inline void append_words(std::vector<std::byte>& out, std::uint64_t first, std::uint64_t second) {
  for (const std::uint64_t word : {first, second})
    for (int shift = 0; shift < 64; shift += 8) out.push_back(static_cast<std::byte>(word >> shift & 0xff));
}

inline std::uint64_t word_at(std::span<const std::byte> bytes, std::size_t at) {
  std::uint64_t word = 0;
  for (std::size_t i = 0; i < 8; ++i) word |= std::to_integer<std::uint64_t>(bytes[at + i]) << (8 * i);
  return word;
}

using RecordWords = std::array<std::uint64_t, 2>;

inline RecordWords words_of(const TraceRecord& record) {
  return {static_cast<std::uint64_t>(record.op) | std::uint64_t{record.succeeded} << 8 |
              std::uint64_t{record.detail} << 16 | std::uint64_t{record.a} << 32,
          record.wide()};
}

inline TraceRecord record_of(const RecordWords& words) {
  TraceRecord record =
      TraceRecord::with(static_cast<TraceOp>(words[0] & 0xff), words[1], static_cast<std::uint32_t>(words[0] >> 32),
                        static_cast<std::uint16_t>(words[0] >> 16 & 0xffff));
  record.succeeded = static_cast<std::uint8_t>(words[0] >> 8 & 0xff);
  return record;
}

// The header's first word; `sizes` is its second one.
inline std::uint64_t header_of(std::uint64_t sizes) { return trace_magic | hash_mix(trace_magic, sizes) >> 32 << 32; }

inline std::uint64_t add_to_sum(std::uint64_t sum, const RecordWords& words) {
  return hash_mix(hash_mix(sum, words[0]), words[1]);
}

}  // namespace detail

/// What a file of a trace begins with: 16 bytes.
inline std::vector<std::byte> begin_trace(const BlockAllocator& allocator) {
  const std::uint64_t sizes = static_cast<std::uint32_t>(allocator.num_blocks()) |
                              std::uint64_t{static_cast<std::uint32_t>(allocator.block_size())} << 32;
  std::vector<std::byte> out;
  detail::append_words(out, detail::header_of(sizes), sizes);
  return out;
}

/// Adds the records of `trace` as one piece: 16 bytes, and 16 for each record. Write it behind what the file holds
/// already and clear the trace; a program that dies later leaves whole pieces. Throws InvalidArgument if the trace lost
/// records.
inline void add_piece(std::vector<std::byte>& out, const Trace& trace) {
  require(trace.num_lost() == 0, "add_piece: records that were lost", 0, trace.num_lost());
  std::uint64_t sum = trace.records().size();
  for (const TraceRecord& record : trace.records()) sum = detail::add_to_sum(sum, detail::words_of(record));
  out.reserve(out.size() + detail::trace_unit * (trace.records().size() + 1));
  detail::append_words(out, trace.records().size(), sum);
  for (const TraceRecord& record : trace.records()) {
    const detail::RecordWords words = detail::words_of(record);
    detail::append_words(out, words[0], words[1]);
  }
}

/// Throws TraceError unless the bytes are a header and whole pieces, as they were written.
inline SavedTrace load_trace(std::span<const std::byte> bytes, CutEnd cut_end = CutEnd::refuse) {
  using detail::trace_unit;
  if (bytes.size() < trace_unit || static_cast<std::uint32_t>(detail::word_at(bytes, 0)) != detail::trace_magic)
    detail::raise<TraceError>("load_trace: no trace of this version");
  const std::uint64_t sizes = detail::word_at(bytes, 8);
  if (detail::word_at(bytes, 0) != detail::header_of(sizes))
    detail::raise<TraceError>("load_trace: the header is damaged");
  SavedTrace trace{.options = {.num_blocks = static_cast<std::int32_t>(static_cast<std::uint32_t>(sizes)),
                               .block_size = static_cast<std::int32_t>(static_cast<std::uint32_t>(sizes >> 32))},
                   .records = {}};
  for (bytes = bytes.subspan(trace_unit); !bytes.empty();) {
    const std::size_t room = bytes.size() / trace_unit;
    const std::uint64_t count = room == 0 ? 0 : detail::word_at(bytes, 0);
    if (room == 0 || count > room - 1) {
      if (cut_end == CutEnd::drop) break;
      detail::raise<TraceError>("load_trace: cut off in the piece behind record " +
                                std::to_string(trace.records.size()));
    }
    std::uint64_t sum = count;
    const std::uint64_t expected = detail::word_at(bytes, 8);
    bytes = bytes.subspan(trace_unit);
    for (std::uint64_t i = 0; i < count; ++i, bytes = bytes.subspan(trace_unit)) {
      const detail::RecordWords words = {detail::word_at(bytes, 0), detail::word_at(bytes, 8)};
      sum = detail::add_to_sum(sum, words);
      trace.records.push_back(detail::record_of(words));
    }
    if (sum != expected)
      detail::raise<TraceError>("load_trace: damaged in the piece before record " +
                                std::to_string(trace.records.size()));
  }
  return trace;
}

}  // namespace v0
}  // namespace pagedkv
