// All the numerics of attention: a softmax that is computed in pieces, and how the pieces are joined.
#pragma once

#include "pagedkv/core/config.hpp"
#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {

/// The running maximum and sum of exponentials of one row ("Online normalizer calculation for softmax",
/// arXiv:1805.02867, sec. 3). The output that goes with it is a sum of values, each weighted by exp(logit - max):
/// unnormalised. Logits are natural; -inf means "not visible"; a fresh row has max -inf and sum 0.
struct OnlineSoftmax {
  float max = -infinity;
  float sum = 0.f;

  /// Lets the maximum rise to at least `logit`. Returns the factor for everything weighted by the old maximum.
  PAGEDKV_HD float raise(float logit) {
    const float old = max;
    max = pagedkv::max(old, logit);
    // A row that has seen nothing has nothing to scale, and -inf - -inf would be NaN.
    const float scale = old == -infinity ? 0.f : exp(old - max);
    sum *= scale;
    return scale;
  }

  /// The weight of a logit, after raise() has seen it. Add it to `sum` once.
  PAGEDKV_HD float weight(float logit) const { return logit == -infinity ? 0.f : exp(logit - max); }

  /// Joins another piece of the same row. Returns the factors of both outputs: output = own * output + other * its
  /// output.
  struct Factors {
    float own, other;
  };
  PAGEDKV_HD Factors merge(const OnlineSoftmax& piece) {
    const float own = raise(piece.max);
    const float other = piece.weight_at(max);
    sum += piece.sum * other;
    return {own, other};
  }

  /// Ends a row: output times `scale` is normalised, `lse` is the natural logarithm of the sum of exponentials. `prior`
  /// (-inf for none) is counted here and nowhere else. A row without a key: scale 0, lse -inf or the prior. NaN stays
  /// NaN.
  struct Finished {
    float scale, lse;
  };
  PAGEDKV_HD Finished finish(float prior = -infinity) const {
    if (sum == 0.f) return {0.f, prior};  // the largest logit alone weighs 1: only a row without keys has no sum
    const float top = pagedkv::max(max, prior);
    const float own = exp(max - top);
    const float total = sum * own + (prior == -infinity ? 0.f : exp(prior - top));
    return {own / total, top + log(total)};
  }

 private:
  PAGEDKV_HD float weight_at(float new_max) const { return max == -infinity ? 0.f : exp(max - new_max); }
};

/// The same for a row of products x that stand for logits x * slope_log2 / log2_e, slope_log2 > 0: one multiplication
/// and one addition in front of each power of two. Everything is measured from max_log2, which is rounded once, so that
/// pieces fit together whatever the rounding was.
struct ScaledSoftmax {
  float max_log2 = -infinity;
  float sum = 0.f;

  /// Lets the maximum rise to at least that of a product. Returns the factor for everything weighted by the old one.
  PAGEDKV_HD float raise(float product, float slope_log2) {
    const float old = max_log2;
    max_log2 = larger(old, product * slope_log2);
    const float factor = exp2(old - reference());  // of a row that has seen nothing: 0
    sum *= factor;
    return factor;
  }

  /// What a weight is measured from; -inf - -inf would be NaN.
  PAGEDKV_HD float reference() const { return max_log2 == -infinity ? 0.f : max_log2; }

  PAGEDKV_HD OnlineSoftmax natural() const { return {max_log2 * ln_2, sum}; }
};

}  // namespace v0
}  // namespace pagedkv
