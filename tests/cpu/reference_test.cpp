// The reference itself, against answers worked out by hand: what the library means.
#include "pagedkv/cpu/reference.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "support/problem_generator.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

// One sequence, one KV head of size 1, so that a logit is q * k and an output is one number.
struct Tiny {
  GeneratedProblem<float> generated;

  Tiny(std::vector<float> queries, std::vector<float> k, std::vector<float> v, int group_size = 1)
      : generated({.seed = 1,
                   .q_len = {static_cast<int>(queries.size()) / group_size},
                   .kv_len = {static_cast<int>(k.size())},
                   .group_size = group_size,
                   .head_dim = 1,
                   .head_dim_v = 1,
                   .block_size = 2}) {
    generated.q = queries;
    const auto kv = generated.kv_view<Space::host>(generated.pool.data());
    for (std::size_t key = 0; key < k.size(); ++key) {
      const int block = generated.block_ids[key / 2];
      kv.k(block, 0, key % 2, 0) = k[key];
      kv.v(block, 0, key % 2, 0) = v[key];
    }
  }

  template <class V>
  void attend(const V& variant) {
    cpu::attend_reference(generated.problem(), variant);
  }
  float out(std::size_t row) const { return generated.out[generated.margin + row]; }
  float lse(std::size_t row) const { return generated.lse[generated.margin + row]; }
};

const float ln_3 = std::log(3.f);

}  // namespace

TEST_CASE("weights are exponentials of the logits, and lse is the natural logarithm of their sum") {
  Tiny tiny({1}, {0, ln_3}, {8, 4});  // weights 1 and 3
  tiny.attend(Full{});
  CHECK(tiny.out(0) == doctest::Approx(5));
  CHECK(tiny.lse(0) == doctest::Approx(std::log(4)));
}

TEST_CASE("the newest query sees the newest key, older ones see one key less each") {
  Tiny tiny({0, 0, 0}, {0, 0, 0, 0}, {1, 3, 5, 7});
  tiny.attend(Causal{});
  CHECK(tiny.out(0) == doctest::Approx(2));
  CHECK(tiny.out(1) == doctest::Approx(3));
  CHECK(tiny.out(2) == doctest::Approx(4));
  CHECK(tiny.lse(0) == doctest::Approx(std::log(2)));
}

TEST_CASE("a query without a key has output 0 and lse -inf") {
  Tiny more_queries_than_keys({0, 0, 0}, {0}, {7});
  more_queries_than_keys.attend(Causal{});
  for (const std::size_t row : {0, 1}) {
    CHECK(more_queries_than_keys.out(row) == 0);
    CHECK(more_queries_than_keys.lse(row) == -infinity);
  }
  CHECK(more_queries_than_keys.out(2) == 7);
  CHECK(more_queries_than_keys.lse(2) == 0);

  Tiny no_key({1}, {}, {});
  no_key.attend(Full{});
  CHECK(no_key.out(0) == 0);
  CHECK(no_key.lse(0) == -infinity);
}

TEST_CASE("a window of W sees the W newest keys, itself included, and the sink tokens") {
  Tiny tiny({0}, {0, 0, 0, 0, 0}, {1, 2, 4, 8, 16});
  tiny.attend(SlidingWindow{.window = 2});
  CHECK(tiny.out(0) == doctest::Approx(12));
  tiny.attend(SlidingWindow{.window = 2, .sink_tokens = 1});
  CHECK(tiny.out(0) == doctest::Approx(25.f / 3));
  tiny.attend(SlidingWindow{.window = 99, .sink_tokens = 1});
  CHECK(tiny.out(0) == doctest::Approx(31.f / 5));
}

TEST_CASE("a sink logit weighs in the denominator once, also where there is no key") {
  const std::array sinks{ln_3};
  Tiny tiny({1}, {0, 0}, {5, 10});
  tiny.attend(SinkLogit<>{sinks.data()});
  CHECK(tiny.out(0) == doctest::Approx(15. / 5));
  CHECK(tiny.lse(0) == doctest::Approx(std::log(5)));
  tiny.attend(chain(SinkLogit<>{sinks.data()}, SinkLogit<>{sinks.data()}));
  CHECK(tiny.lse(0) == doctest::Approx(std::log(8)));

  const std::array huge{1e4f};
  tiny.attend(SinkLogit<>{huge.data()});
  CHECK(tiny.out(0) == 0);
  CHECK(tiny.lse(0) == 1e4f);

  Tiny no_key({1}, {}, {});
  no_key.attend(SinkLogit<>{sinks.data()});
  CHECK(no_key.out(0) == 0);
  CHECK(no_key.lse(0) == doctest::Approx(ln_3));
}

TEST_CASE("a soft cap bends logits, ALiBi leans them towards the newest key, and a chain does one after the other") {
  const std::array slopes{2.f};
  Tiny tiny({1}, {1, 1}, {0, 1});
  tiny.attend(SoftCap{.cap = 0.5f});
  CHECK(tiny.lse(0) == doctest::Approx(0.5 * std::tanh(2) + std::log(2)));
  tiny.attend(Alibi<>{slopes.data()});
  CHECK(tiny.lse(0) == doctest::Approx(std::log(std::exp(-1) + std::exp(1))));
  tiny.attend(chain(Alibi<>{slopes.data()}, SoftCap{.cap = 0.5f}));
  CHECK(tiny.lse(0) == doctest::Approx(std::log(std::exp(-0.5 * std::tanh(2)) + std::exp(0.5 * std::tanh(2)))));
}

TEST_CASE("query heads of a group read one KV head, and slopes go by query head") {
  const std::array slopes{0.f, ln_3};
  Tiny tiny({0, 0}, {0, 0}, {0, 8}, 2);
  tiny.attend(Alibi<>{slopes.data()});
  CHECK(tiny.out(0) == doctest::Approx(4));
  CHECK(tiny.out(1) == doctest::Approx(6));
}

TEST_CASE("a logit of -inf is another way to hide a key") {
  struct Hide {
    float logit(float x, Position p) const { return p.key == 1 ? -infinity : x; }
    bool visible(Position) const { return true; }
    KeyRanges keys(int, int num_keys) const { return {{0, num_keys}}; }
  };
  Tiny tiny({0}, {0, 0, 0}, {1, 100, 3});
  tiny.attend(Hide{});
  CHECK(tiny.out(0) == doctest::Approx(2));
}
