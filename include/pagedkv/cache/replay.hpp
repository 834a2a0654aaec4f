// Replay: asks a fresh allocator and prefix cache what a trace says that others were asked, and checks that they answer
// alike.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/prefix_cache.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/cache/trace.hpp"
#include "pagedkv/cache/trace_file.hpp"
#include "pagedkv/cache/trace_prefix.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

/// Owns the sequences and steps of a trace; what is alive when the records end can be looked at, and dies with the
/// replay. Allocator and cache must be as those that were recorded were before the first record: fresh, with the same
/// options, eviction policy and hash. The allocator's, the sequences', the steps' and the cache's answers are compared
/// with the recorded ones, and so are their states where the recording says `state`; the first difference is a
/// TraceError that names the record, and leaves everything as it was found there.
///
/// A recording marks states by trace.write(TraceRecord::with(TraceOp::state, cache.state_hash())), without a cache by
/// the allocator's state_hash().
template <class Cache = PrefixCache>
class Replay {
 public:
  explicit Replay(BlockAllocator& allocator, Cache* cache = nullptr) : allocator_(allocator), cache_(cache) {}
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;
  ~Replay() { allocator_.retire(std::numeric_limits<Fence>::max()); }

  /// All of `records`; further calls go on behind them. A piece must not end inside an operation: whoever takes the
  /// records of a running trace away between calls gets whole ones.
  void run(std::span<const TraceRecord> records) {
    while (!records.empty()) records = records.subspan(step(records));
  }

  /// The same, of a trace that lost nothing.
  void run(const Trace& trace) {
    if (trace.num_lost() > 0)
      detail::raise<TraceError>("Replay: " + std::to_string(trace.num_lost()) + " records were lost");
    run(trace.records());
  }

  /// The first operation of `records`, of which there must be one; returns how many of them it was.
  std::size_t step(std::span<const TraceRecord> records) {
    const TraceRecord& record = records[0];
    std::size_t count = 1;
    const std::string complaint = pagedkv::detail::message_of<InvalidArgument>(
        [&] { count = is_prefix_call(record.op) ? call_cache(records) : (run_one(record), 1); });
    if (!complaint.empty()) differ(record, "accepted", complaint);
    num_replayed_ += count;
    return count;
  }

  std::size_t num_replayed() const { return num_replayed_; }

  /// By the number of its table in the recording; nullptr if nothing was asked of it, or it is gone.
  const Sequence* sequence(std::uint32_t number) const {
    const auto found = sequences_.find(number);
    return found == sequences_.end() ? nullptr : &found->second;
  }

  /// By its serial; nullptr if it is not open.
  const StepPlan* open_step(std::uint32_t serial) const {
    const auto found = steps_.find(serial);
    return found == steps_.end() ? nullptr : &found->second;
  }

 private:
  static constexpr std::array names = {
      "append",    "draft",     "accept", "fork",    "truncate", "release_before", "drop",    "forbid",   "commit",
      "set_aside", "give_back", "guard",  "retire",  "drain",    "admit",          "publish", "announce", "pin",
      "unpin",     "reset",     "clear",  "advance", "options",  "bytes",          "tokens",  "state",    "outside"};
  static_assert(names.size() == static_cast<std::size_t>(TraceOp::outside) + 1);

  static bool is_prefix_call(TraceOp op) {
    return op == TraceOp::admit || op == TraceOp::publish || op == TraceOp::announce || op == TraceOp::pin;
  }

  [[noreturn]] void differ(const TraceRecord& record, const std::string& expected, const std::string& got) const {
    const auto op = static_cast<std::size_t>(record.op);
    detail::raise<TraceError>("Replay: record " + std::to_string(num_replayed_) + " (" +
                              (op < names.size() ? names[op] : "of no known kind") + "): " + expected + " expected, " +
                              got);
  }

  void check_success(const TraceRecord& record, bool succeeded) const {
    if (succeeded != (record.succeeded != 0))
      differ(record, record.succeeded != 0 ? "success" : "refusal", succeeded ? "success" : "refusal");
  }

  template <class T>
  void check_equal(const TraceRecord& record, const char* what, T expected, T got) const {
    if (expected != got) differ(record, what + (" " + std::to_string(expected)), std::to_string(got));
  }

  Sequence& sequence_of(std::uint32_t number) { return sequences_.try_emplace(number, allocator_).first->second; }

  // The step that was filled, or an empty one that must stay empty, where none was: then nothing was appended.
  template <class Call>
  void with_step(const TraceRecord& record, Call call) {
    StepPlan& plan = record.b == 0 ? unopened_ : steps_[record.b];
    check_success(record, call(plan));
    check_equal(record, "step", record.b, static_cast<std::uint32_t>(plan.serial()));
  }

  void run_one(const TraceRecord& record) {
    switch (record.op) {
      case TraceOp::append:
        return with_step(record, [&](StepPlan& plan) { return sequence_of(record.a).append(record.c, plan); });
      case TraceOp::draft:
        return with_step(record, [&](StepPlan& plan) { return sequence_of(record.a).reserve(record.c, plan); });
      case TraceOp::accept:
        return sequence_of(record.a).accept(record.c);
      case TraceOp::fork: {
        Sequence child = sequence_of(record.a).fork();
        if (!sequences_.try_emplace(record.b, std::move(child)).second) differ(record, "a new child", "a known one");
        return;
      }
      case TraceOp::truncate:
        return sequence_of(record.a).truncate(record.c);
      case TraceOp::release_before:
        return sequence_of(record.a).release_before(record.c);
      case TraceOp::drop:
        sequences_.erase(record.a);
        return;
      case TraceOp::forbid:
        return sequence_of(record.a).forbid_publishing();
      case TraceOp::commit:
        return commit(record);
      case TraceOp::set_aside: {
        std::optional<Reservation> reserved = allocator_.reserve(record.c);
        check_success(record, reserved.has_value());
        if (reserved) reservations_.push_back(std::move(*reserved));
        return;
      }
      case TraceOp::give_back:
        return give_back(record);
      case TraceOp::guard: {
        const BlockId block{static_cast<std::int32_t>(record.a)};
        return allocator_.guard({&block, 1}, record.wide());
      }
      case TraceOp::retire:
        return allocator_.retire(record.wide());
      case TraceOp::drain:
        return allocator_.drain(static_cast<std::int64_t>(record.wide()));
      case TraceOp::unpin:
        return check_success(record, cache_of(record).unpin(PinId{record.a}));
      case TraceOp::reset:
        return cache_of(record).reset();
      case TraceOp::clear:
        return cache_of(record).clear();
      case TraceOp::advance:
        return cache_of(record).advance(static_cast<std::int64_t>(record.wide()));
      case TraceOp::state:
        return check_equal(record, "state", record.wide(),
                           cache_ == nullptr ? allocator_.state_hash() : cache_->state_hash());
      case TraceOp::outside:
        differ(record, "what a trace holds", "blocks that were handed out or adopted by hand");
      default:
        differ(record, "an operation", "a part of one");
    }
  }

  void commit(const TraceRecord& record) {
    const auto plan = steps_.find(record.b);
    if (plan == steps_.end()) differ(record, "an open step", "step " + std::to_string(record.b));
    plan->second.commit();
    steps_.erase(plan);
  }

  // A recording does not say whose: only the sum of what is reserved matters.
  void give_back(const TraceRecord& record) {
    int left = record.c;
    while (left > 0 && !reservations_.empty()) {
      const int count = min(left, reservations_.back().size());
      reservations_.back().shrink(count);
      left -= count;
      if (reservations_.back().size() == 0) reservations_.pop_back();
    }
    if (left != 0) differ(record, "reserved blocks", std::to_string(record.c - left) + " reserved");
  }

  Cache& cache_of(const TraceRecord& record) const {
    if (cache_ == nullptr) differ(record, "a prefix cache", "none");
    return *cache_;
  }

  std::size_t call_cache(std::span<const TraceRecord> records) {
    const TraceRecord& record = records[0];
    Cache& cache = cache_of(record);
    const bool may_skip = record.op == TraceOp::publish || record.op == TraceOp::announce;
    const std::optional<std::size_t> count = call_.read(records, may_skip ? sequence_of(record.a).size() : 0);
    if (!count) differ(record, "its tokens and options", "others or too few");
    const AdmitOptions& options = call_.options();
    switch (record.op) {
      case TraceOp::admit:
        with_step(record, [&](StepPlan& plan) {
          return static_cast<bool>(cache.admit(call_.tokens(), sequence_of(record.a), plan, options));
        });
        break;
      case TraceOp::publish:
        if (call_.remaps()) {
          cache.publish_and_remap(call_.tokens(), sequence_of(record.a), options.scope(), options.retention);
        } else {
          cache.publish(call_.tokens(), sequence_of(record.a), options.scope(), options.retention);
        }
        break;
      case TraceOp::announce:
        cache.announce(call_.tokens(), sequence_of(record.a), options.scope());
        break;
      default: {  // pin
        const std::optional<PinId> pin = cache.pin(call_.tokens(), options.scope());
        check_success(record, pin.has_value());
        check_equal(record, "pin", record.a, pin ? static_cast<std::uint32_t>(*pin) : 0);
      }
    }
    return *count;
  }

  BlockAllocator& allocator_;
  Cache* cache_;
  std::size_t num_replayed_ = 0;  // records
  detail::PrefixCallReader call_;
  StepPlan unopened_;
  std::map<std::uint32_t, StepPlan> steps_;      // by serial
  std::map<std::uint32_t, Sequence> sequences_;  // by number; they die before the steps, which their rows are in
  std::vector<Reservation> reservations_;
};

}  // namespace v0
}  // namespace pagedkv
