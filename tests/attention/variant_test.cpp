// The concept of a rule, key ranges, and chain(): order of logits, masks, priors, and on which side pointers lie.
#include "pagedkv/attention/variant.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <type_traits>

#include "pagedkv/attention/variants.hpp"

using namespace pagedkv;

namespace {

struct Add {
  float amount;
  float logit(float x, Position) const { return x + amount; }
  bool visible(Position p) const { return p.key != 1; }
  KeyRanges keys(int, int num_keys) const { return {{0, num_keys}}; }
};

struct Scale {
  float factor;
  float logit(float x, Position) const { return x * factor; }
  bool visible(Position p) const { return p.key != 2; }
  KeyRanges keys(int, int num_keys) const { return {{0, min(4, num_keys)}}; }
};

struct NoKeys {
  float logit(float x, Position) const { return x; }
  bool visible(Position) const { return true; }
};

struct OwnsMemory : Add {
  ~OwnsMemory() {}
};

using HostAlibi = Alibi<Space::host>;
using DeviceAlibi = Alibi<Space::device>;

}  // namespace

static_assert(AttentionVariant<Causal> && AttentionVariant<Add> && AttentionVariant<Chain<Causal, SoftCap>>);
static_assert(!AttentionVariant<NoKeys> && !AttentionVariant<OwnsMemory> && !AttentionVariant<int>);
static_assert(HasPrior<SinkLogit<>> && HasPrior<Chain<Causal, SinkLogit<>>> && HasPrior<Chain<SinkLogit<>, Causal>>);
static_assert(!HasPrior<Causal> && !HasPrior<Chain<Causal, SoftCap>>);

static_assert(VariantFor<Causal, Space::host> && VariantFor<Causal, Space::device>,
              "rules without pointers go anywhere");
static_assert(VariantFor<HostAlibi, Space::host> && !VariantFor<HostAlibi, Space::device>);
static_assert(VariantFor<Chain<Causal, DeviceAlibi>, Space::device> &&
              !VariantFor<Chain<Causal, DeviceAlibi>, Space::host>);
static_assert(VariantFor<Chain<DeviceAlibi, Causal>, Space::device> &&
              !VariantFor<Chain<DeviceAlibi, Causal>, Space::host>);
static_assert(VariantFor<Chain<Chain<HostAlibi, Causal>, SoftCap>, Space::host>);

static_assert(keeps_logits_v<Causal> && !keeps_logits_v<DeviceAlibi> && !keeps_logits_v<Add>,
              "a rule that says nothing is asked for every logit");
static_assert(keeps_logits_v<Chain<Causal, SinkLogit<>>> && !keeps_logits_v<Chain<Causal, SoftCap>> &&
              !keeps_logits_v<Chain<Add, Causal>>);

TEST_CASE("a rule that says nothing, alone or in a chain, is asked for every key") {
  CHECK(sees_all(Causal{}, 0, 4, 9, {0, 5}));
  CHECK_FALSE(sees_all(Add{1.f}, 0, 4, 9, {0, 1}));
  CHECK_FALSE(sees_all(chain(Causal{}, Add{1.f}), 0, 4, 9, {0, 1}));
  CHECK_FALSE(sees_all(chain(Add{1.f}, Causal{}), 0, 4, 9, {0, 1}));
  CHECK(sees_all(chain(Causal{}, Full{}), 0, 4, 9, {0, 5}));
  CHECK_FALSE(sees_all(chain(Causal{}, Full{}), 0, 4, 9, {0, 6}));
}

TEST_CASE("a chain sends a logit through the first rule, then the second") {
  const auto both = chain(Add{1.f}, Scale{10.f});
  CHECK(both.logit(2.f, {}) == 30.f);
  CHECK(chain(Scale{10.f}, Add{1.f}).logit(2.f, {}) == 21.f);
  CHECK(chain(Add{1.f}, Scale{10.f}, Add{5.f}).logit(2.f, {}) == 35.f);
}

TEST_CASE("a chain shows what both rules show") {
  const auto both = chain(Add{1.f}, Scale{10.f});
  CHECK(both.visible({.query = 9, .key = 0, .q_head = 0, .sequence = 0}));
  CHECK_FALSE(both.visible({.query = 9, .key = 1, .q_head = 0, .sequence = 0}));
  CHECK_FALSE(both.visible({.query = 9, .key = 2, .q_head = 0, .sequence = 0}));
  CHECK(both.keys(9, 7).first == KeyRange{0, 4});
}

TEST_CASE("priors of a chain add up in the denominator") {
  const std::array a{1.f, -infinity}, b{2.f, 3.f};
  const SinkLogit<> first{a.data()}, second{b.data()};
  CHECK(chain(Causal{}, first).prior(0) == 1.f);
  CHECK(chain(first, Causal{}).prior(0) == 1.f);
  CHECK(chain(first, second).prior(0) == doctest::Approx(std::log(std::exp(1.) + std::exp(2.))));
  CHECK(chain(first, second).prior(1) == 3.f);
  CHECK(chain(first, first).prior(1) == -infinity);
  CHECK(prior_of(Causal{}, 0) == -infinity);
}

TEST_CASE("key ranges intersect, and two-piece ranges cover what both hold") {
  CHECK(intersect(KeyRange{0, 5}, KeyRange{3, 9}) == KeyRange{3, 5});
  CHECK(intersect(KeyRange{0, 3}, KeyRange{5, 9}).empty());
  CHECK(no_keys.empty());
  for (int bits = 0; bits < 1 << 12; ++bits) {  // all pairs of two-piece ranges with bounds below 8
    const auto piece = [bits](int shift) { return KeyRange{(bits >> shift) & 7, ((bits >> (shift + 3)) & 7) + 1}; };
    const KeyRanges a{piece(0), no_keys}, b{{0, 2}, {max(2, piece(6).begin), piece(6).end}};
    const KeyRanges both = intersect(a, b);
    const KeyRanges exact = overlap(a, b);  // at most two pieces, because `a` has one
    bool covered = true, equal = true;
    for (int key = 0; key < 9; ++key) {
      covered &= !(a.contains(key) && b.contains(key)) || both.contains(key);
      equal &= exact.contains(key) == (a.contains(key) && b.contains(key));
    }
    CHECK(covered);
    CHECK(equal);
  }
  const KeyRanges three_pieces = overlap({{0, 5}, {8, 20}}, {{0, 1}, {3, 20}});
  CHECK(three_pieces.first == KeyRange{0, 5});  // the gap of two keys is named, that of three is not
  CHECK(three_pieces.second == KeyRange{8, 20});
}
