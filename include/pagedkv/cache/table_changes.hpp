// TableChanges: which entries of a flat table have changed, so that a copy elsewhere follows it entry by entry.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

/// How far a copy has come with the changes of one table; a new one knows nothing.
struct TableVersion {
  std::uint64_t table = 0;
  std::uint64_t num_changes = 0;
};

/// A log of entry indices, at most a sixteenth of the table long: a copy that is farther behind is made anew. Any
/// number of copies can follow, each with its version. An entry that changed twice is listed twice, so apply the
/// table's present value, not the order. Memory for the log is allocated once.
class TableChanges {
 public:
  explicit TableChanges(std::size_t num_entries) : table_(next_table()) {
    log_.reserve(num_entries == 0 ? 0 : max(num_entries / 16, std::size_t{64}));
  }
  // A copy of a table is another table.
  TableChanges(const TableChanges& other) : table_(next_table()) { log_.reserve(other.log_.capacity()); }
  TableChanges& operator=(const TableChanges& other) {
    log_.reserve(other.log_.capacity());
    restart();
    return *this;
  }

  void add(std::size_t entry) {
    if (log_.size() == log_.capacity()) {  // the older half goes
      const auto half = (log_.size() + 1) / 2;
      log_.erase(log_.begin(), log_.begin() + static_cast<std::ptrdiff_t>(half));
      num_forgotten_ += half;
    }
    log_.push_back(static_cast<std::int64_t>(entry));
  }

  /// Everything may have changed.
  void restart() {
    table_ = next_table();
    num_forgotten_ = 0;
    log_.clear();
  }

  TableVersion version() const { return {table_, num_forgotten_ + log_.size()}; }

  /// The entries that have changed since `seen`; nullopt if the log does not reach back so far, or `seen` is of another
  /// table.
  std::optional<std::span<const std::int64_t>> since(const TableVersion& seen) const {
    if (seen.table != table_ || seen.num_changes < num_forgotten_) return std::nullopt;
    return std::span(log_).subspan(static_cast<std::size_t>(seen.num_changes - num_forgotten_));
  }

 private:
  static std::uint64_t next_table() {
    static std::atomic<std::uint64_t> last{0};
    return ++last;
  }

  std::uint64_t table_;
  std::uint64_t num_forgotten_ = 0;  // changes before the first of the log
  std::vector<std::int64_t> log_;
};

}  // namespace v0
}  // namespace pagedkv
