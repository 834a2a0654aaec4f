// Trace: what was asked of an allocator, its sequences, steps and prefix cache, 16 bytes an operation; replay.hpp asks
// it again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

/// What was asked. What it did is not recorded, but whether it succeeded: the same calls have the same effects.
enum class TraceOp : std::uint8_t {
  append,          // a: sequence, b: step, c: tokens
  draft,           // a: sequence, b: step, c: drafts (Sequence::reserve)
  accept,          // a: sequence, c: drafts
  fork,            // a: sequence, b: its child
  truncate,        // a: sequence, c: tokens kept
  release_before,  // a: sequence, c: position
  drop,            // a: sequence
  forbid,          // a: sequence (Sequence::forbid_publishing)
  commit,          // b: step
  set_aside,       // c: blocks (BlockAllocator::reserve)
  give_back,       // c: blocks that are no longer reserved
  guard,           // a: block; wide(): fence
  retire,          // wide(): fence
  drain,           // wide(): entries
  admit,           // a: sequence, b: step, c: tokens; they follow, and so do options
  publish,         // a: sequence, c: tokens; they follow, and so do options
  announce,        // a: sequence, c: tokens; they follow, and so do options
  pin,             // c: tokens; they follow, and so do options
  unpin,           // a: pin
  reset,           // of the prefix cache
  clear,           // of the prefix cache
  advance,         // wide(): time
  options,         // wide(): a word of options of the operation before; detail says which
  bytes,           // twelve bytes of a text of the operation before
  tokens,          // a, b, c: three tokens of the operation before
  state,           // wide(): the state hash at this point
  outside,         // something that a trace does not hold, e.g. blocks allocated without a sequence
};

/// Sequences and steps go by number, of their table and their serial: the same numbers every time.
struct TraceRecord {
  TraceOp op = TraceOp::outside;
  std::uint8_t succeeded = 1;
  std::uint16_t detail = 0;
  std::uint32_t a = 0;
  std::uint32_t b = 0;
  std::int32_t c = 0;

  static TraceRecord with(TraceOp op, std::uint64_t value, std::uint32_t a = 0, std::uint16_t detail = 0) {
    return {.op = op,
            .detail = detail,
            .a = a,
            .b = static_cast<std::uint32_t>(value),
            .c = static_cast<std::int32_t>(static_cast<std::uint32_t>(value >> 32))};
  }
  std::uint64_t wide() const { return b | std::uint64_t{static_cast<std::uint32_t>(c)} << 32; }

  friend bool operator==(const TraceRecord&, const TraceRecord&) = default;
};
static_assert(sizeof(TraceRecord) == 16);

/// Memory for records, made once: writing neither allocates nor throws. Who keeps a trace takes the records away, into
/// a file perhaps, before it is full; what did not fit is counted, and a trace that lost something cannot be replayed.
class Trace {
 public:
  explicit Trace(std::size_t max_records) { records_.reserve(max_records); }

  std::span<const TraceRecord> records() const { return records_; }
  std::size_t num_lost() const { return num_lost_; }
  void clear() { records_.clear(); }

  void write(const TraceRecord& record) {
    if (is_paused_) return;
    if (records_.size() == records_.capacity()) {
      ++num_lost_;
      return;
    }
    records_.push_back(record);
  }

  void write_tokens(std::span<const std::int32_t> tokens) {
    for (std::size_t i = 0; i < tokens.size(); i += 3) {
      std::int32_t three[3] = {};
      std::memcpy(three, &tokens[i], min(tokens.size() - i, std::size_t{3}) * sizeof(std::int32_t));
      write({.op = TraceOp::tokens,
             .a = static_cast<std::uint32_t>(three[0]),
             .b = static_cast<std::uint32_t>(three[1]),
             .c = three[2]});
    }
  }

  /// While it lives nothing is written: an operation that was recorded consists of others.
  class Pause {
   public:
    explicit Pause(Trace* trace) : trace_(trace), before_(trace != nullptr && trace->is_paused_) {
      if (trace_ != nullptr) trace_->is_paused_ = true;
    }
    ~Pause() {
      if (trace_ != nullptr) trace_->is_paused_ = before_;
    }
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    Trace* trace_;
    bool before_;
  };

 private:
  std::vector<TraceRecord> records_;
  std::size_t num_lost_ = 0;
  bool is_paused_ = false;
};

}  // namespace v0
}  // namespace pagedkv
