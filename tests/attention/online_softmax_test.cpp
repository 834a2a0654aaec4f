// OnlineSoftmax: a softmax in pieces is the softmax of the whole, however it is cut, and empty pieces change no bit.
#include "pagedkv/attention/online_softmax.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <span>
#include <vector>

#include "support/random.hpp"

using namespace pagedkv;

namespace {

// A row with an output of one number.
struct Row {
  OnlineSoftmax softmax;
  float output = 0.f;

  void add(float logit, float value) {
    output *= softmax.raise(logit);
    const float weight = softmax.weight(logit);
    softmax.sum += weight;
    output += weight * value;
  }
  void merge(const Row& piece) {
    const auto [own, other] = softmax.merge(piece.softmax);
    output = own * output + other * piece.output;
  }
  float result() const { return output * softmax.finish().scale; }
};

struct Sample {
  std::vector<float> logits, values;
};

Sample sample(std::uint64_t seed, int count, float largest) {
  pagedkv_test::Random random(seed);
  Sample sample;
  for (int i = 0; i < count; ++i) {
    sample.logits.push_back(random.one_in(5) ? -infinity : random.real(largest));
    sample.values.push_back(random.real(1.f));
  }
  return sample;
}

Row row_of(const Sample& sample, std::size_t begin, std::size_t end) {
  Row row;
  for (std::size_t i = begin; i < end; ++i) row.add(sample.logits[i], sample.values[i]);
  return row;
}

// In double, the textbook's way.
struct Answer {
  double output, lse;
};

Answer answer_of(const Sample& sample) {
  double max = -HUGE_VAL, sum = 0, output = 0;
  for (const float logit : sample.logits) max = std::fmax(max, logit);
  for (std::size_t i = 0; i < sample.logits.size(); ++i) {
    const double weight = std::exp(double{sample.logits[i]} - max);
    sum += weight;
    output += weight * double{sample.values[i]};
  }
  return {output / sum, max + std::log(sum)};
}

}  // namespace

TEST_CASE("one key after the other gives the softmax of all") {
  for (const float largest : {1.f, 30.f, 1e4f}) {
    for (std::uint64_t seed = 1; seed <= 50; ++seed) {
      const Sample keys = sample(seed, 40, largest);
      const Row row = row_of(keys, 0, 40);
      CHECK(row.result() == doctest::Approx(answer_of(keys).output).epsilon(1e-5));
      CHECK(row.softmax.finish().lse == doctest::Approx(answer_of(keys).lse).epsilon(1e-6));
    }
  }
}

TEST_CASE("pieces merged in order give the softmax of all, wherever they were cut and however they are grouped") {
  const Sample keys = sample(7, 30, 20.f);
  const Answer answer = answer_of(keys);
  for (std::size_t first = 0; first <= 30; ++first) {
    for (std::size_t second = first; second <= 30; ++second) {
      const Row a = row_of(keys, 0, first), b = row_of(keys, first, second), c = row_of(keys, second, 30);
      Row left = a;
      left.merge(b);
      left.merge(c);
      Row tail = b, right = a, reversed = c;
      tail.merge(c);
      right.merge(tail);
      reversed.merge(b);
      reversed.merge(a);
      for (const Row& row : {left, right, reversed}) {
        CHECK(row.result() == doctest::Approx(answer.output).epsilon(1e-5));
        CHECK(row.softmax.finish().lse == doctest::Approx(answer.lse).epsilon(1e-6));
      }
    }
  }
}

TEST_CASE("merging with nothing changes no bit, on either side") {
  const Sample keys = sample(3, 10, 5.f);
  const Row row = row_of(keys, 0, 10);
  Row left = row, right;
  left.merge(Row{});
  right.merge(row);
  for (const Row& merged : {left, right}) {
    CHECK(merged.softmax.max == row.softmax.max);
    CHECK(merged.softmax.sum == row.softmax.sum);
    CHECK(merged.output == row.output);
  }
  Row nothing;
  nothing.merge(Row{});
  CHECK(nothing.softmax.max == -infinity);
  CHECK(nothing.softmax.sum == 0.f);
  CHECK(nothing.output == 0.f);
}

TEST_CASE("an output that was never written is multiplied by zero") {
  OnlineSoftmax fresh;
  CHECK(fresh.raise(3.f) == 0.f);
  OnlineSoftmax merged, piece;
  piece.raise(3.f);
  piece.sum = 1.f;
  CHECK(merged.merge(piece).own == 0.f);
  CHECK(piece.merge(OnlineSoftmax{}).other == 0.f);
}

TEST_CASE("hidden keys change no bit, before, between and behind visible ones") {
  Row plain, hidden;
  for (const float logit : {1.f, 3.f, 2.f}) {
    hidden.add(-infinity, 77.f);
    plain.add(logit, logit);
    hidden.add(logit, logit);
  }
  hidden.add(-infinity, 77.f);
  CHECK(hidden.output == plain.output);
  CHECK(hidden.softmax.sum == plain.softmax.sum);
}

TEST_CASE("a row that saw nothing finishes with scale 0 and lse -inf") {
  const auto [scale, lse] = OnlineSoftmax{}.finish();
  CHECK(scale == 0.f);
  CHECK(lse == -infinity);
}

TEST_CASE("a prior joins the denominator once, when the row is finished") {
  Row row;
  row.add(0.f, 6.f);
  row.add(0.f, 6.f);
  const auto [scale, lse] = row.softmax.finish(std::log(4.f));
  CHECK(row.output * scale == doctest::Approx(2));
  CHECK(lse == doctest::Approx(std::log(6)));
  CHECK(OnlineSoftmax{}.finish(2.5f).lse == 2.5f);
  CHECK(OnlineSoftmax{}.finish(2.5f).scale == 0.f);
  CHECK(row.softmax.finish(1e4f).scale == 0.f);
  CHECK(row.softmax.finish(1e4f).lse == 1e4f);
  CHECK(row.softmax.finish(-1e4f).lse == doctest::Approx(std::log(2)));
}

TEST_CASE("NaN is never finished into a number") {
  Row nan, mixed;
  nan.add(std::nanf(""), 1.f);
  mixed.add(1.f, 1.f);
  mixed.merge(nan);
  CHECK(std::isnan(nan.result()));
  CHECK(std::isnan(nan.softmax.finish().lse));
  CHECK(std::isnan(mixed.result()));
}
