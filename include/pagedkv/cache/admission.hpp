// Admission: how a request may start, and the answers: it fits now, it fits later, it never fits, and why.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "pagedkv/cache/eviction.hpp"
#include "pagedkv/cache/prefix_scope.hpp"
#include "pagedkv/core/error.hpp"

namespace pagedkv {
inline namespace v0 {

/// What a request does whose next block is being computed by another one in a step that is not committed yet.
enum class Twins : std::uint8_t {
  compute,  // starts now and computes the block as well; it becomes a duplicate
  wait,     // is refused, and hits the block when it is tried again after that step was published
};

/// How to admit one request. The first four fields are its PrefixScope.
struct AdmitOptions {
  std::uint64_t salt = 0;
  std::string_view model = {};
  std::string_view adapter = {};
  std::span<const PrefixExtra> extras = {};
  bool partial_blocks = false;  // also take the matching first rows of a block, by copying them
  bool no_read = false;         // compute everything (e.g. logits of all tokens are wanted); not counted as a miss
  bool no_write = false;        // nothing of the sequence, nor of its forks, is ever published
  Twins twins = Twins::compute;
  Retention retention = {};                          // of the blocks it hits, from now on
  int max_append = std::numeric_limits<int>::max();  // append at most this many tokens now, >= 1; the rest by append()
  int watermark = 0;  // blocks that must remain available afterwards; 0 when nothing else runs,
                      // else a prompt of nearly the whole pool is told `later` for ever

  PrefixScope scope() const { return {.salt = salt, .model = model, .adapter = adapter, .extras = extras}; }
};

/// What admit() did: the first `cached` tokens are there, `to_compute` are not, `appended` of those have slots now.
struct Admitted {
  int cached;
  int to_compute;
  int appended;
};

/// Why a request was not admitted.
enum class Refusal {
  later,   // it fits when others have left
  never,   // the pool is too small for it
  pinned,  // it would fit now if all pins were dropped
  twin,    // another request of an open step computes what it needs next, and it asked to wait
};

/// Admitted or Refusal.
class [[nodiscard]] Admission {
 public:
  Admission(const Admitted& admitted) : admitted_(admitted), is_admitted_(true) {}
  Admission(Refusal refusal) : refusal_(refusal) {}

  explicit operator bool() const { return is_admitted_; }
  const Admitted& operator*() const {
    require(is_admitted_, "Admission: request", "admitted", "refused");
    return admitted_;
  }
  const Admitted* operator->() const { return &**this; }
  Refusal refusal() const {
    require(!is_admitted_, "Admission: request", "refused", "admitted");
    return refusal_;
  }

 private:
  Admitted admitted_ = {};
  Refusal refusal_ = Refusal::later;
  bool is_admitted_ = false;
};

}  // namespace v0
}  // namespace pagedkv
