// AnyRule: an attention rule behind function pointers, so that a test of many rules compiles the kernels once.
#pragma once

#include <type_traits>

#include "pagedkv/attention/variant.hpp"

namespace pagedkv_test {

/// Refers to a rule that must outlive it. A rule without a prior has the prior -inf, which changes nothing.
class AnyRule {
 public:
  template <pagedkv::AttentionVariant V>
  requires(!std::is_same_v<V, AnyRule>) explicit AnyRule(const V& rule)
      : rule_(&rule),
        logit_([](const void* r, float x, pagedkv::Position p) { return static_cast<const V*>(r)->logit(x, p); }),
        visible_([](const void* r, pagedkv::Position p) { return static_cast<const V*>(r)->visible(p); }),
        keys_([](const void* r, int query, int num_keys) { return static_cast<const V*>(r)->keys(query, num_keys); }),
        seen_keys_([](const void* r, int first, int last, int num_keys) {
          return pagedkv::seen_keys(*static_cast<const V*>(r), first, last, num_keys);
        }),
        sees_all_([](const void* r, int sequence, int first, int last, pagedkv::KeyRange keys) {
          return pagedkv::sees_all(*static_cast<const V*>(r), sequence, first, last, keys);
        }),
        prior_([](const void* r, int q_head) { return pagedkv::prior_of(*static_cast<const V*>(r), q_head); }) {}

  float logit(float x, pagedkv::Position p) const { return logit_(rule_, x, p); }
  bool visible(pagedkv::Position p) const { return visible_(rule_, p); }
  pagedkv::KeyRanges keys(int query, int num_keys) const { return keys_(rule_, query, num_keys); }
  pagedkv::KeyRanges keys(int first, int last, int num_keys) const { return seen_keys_(rule_, first, last, num_keys); }
  bool sees_all(int sequence, int first, int last, pagedkv::KeyRange keys) const {
    return sees_all_(rule_, sequence, first, last, keys);
  }
  float prior(int q_head) const { return prior_(rule_, q_head); }

 private:
  const void* rule_;
  float (*logit_)(const void*, float, pagedkv::Position);
  bool (*visible_)(const void*, pagedkv::Position);
  pagedkv::KeyRanges (*keys_)(const void*, int, int);
  pagedkv::KeyRanges (*seen_keys_)(const void*, int, int, int);
  bool (*sees_all_)(const void*, int, int, int, pagedkv::KeyRange);
  float (*prior_)(const void*, int);
};

}  // namespace pagedkv_test
