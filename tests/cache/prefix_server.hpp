// PrefixServer: a pool with a prefix cache, for tests; a request is admitted, computed and published in one call.
#pragma once

#include <doctest/doctest.h>

#include <optional>
#include <utility>

#include "cache/tokens.hpp"
#include "pagedkv/cache/prefix_cache.hpp"

namespace pagedkv_test {

using namespace pagedkv;

template <class Cache = PrefixCache>
struct PrefixServer {
  PrefixServer(int num_blocks, int block_size, const PrefixCacheOptions& options = {})
      : blocks{{.num_blocks = num_blocks, .block_size = block_size}}, cache{blocks, options} {}
  ~PrefixServer() { cache.check_invariants(); }

  /// The request must fit.
  Sequence serve(const Tokens& tokens, const AdmitOptions& options = {}) {
    Sequence s{blocks};
    admission.emplace(cache.admit(tokens, s, step, options));
    REQUIRE(*admission);
    step.commit();
    if (s.size() == std::ssize(tokens)) cache.publish(tokens, s, options.scope(), options.retention);
    return s;
  }

  /// Serves and says how many tokens were hit.
  int cached(const Tokens& tokens, const AdmitOptions& options = {}) {
    serve(tokens, options);
    return (*admission)->cached;
  }

  BlockAllocator blocks;
  Cache cache;
  StepPlan step;
  std::optional<Admission> admission;
};

}  // namespace pagedkv_test
