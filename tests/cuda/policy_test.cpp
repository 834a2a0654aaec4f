// Policies, what they support, how decode is scheduled, and dispatch by head_dim: all of it without a GPU.
#include "pagedkv/cuda/policy.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "pagedkv/cuda/dispatch.hpp"
#include "pagedkv/cuda/kernels/decode_schedule.hpp"
#include "support/random.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv::cuda;

constexpr Support prefill_for(int head_dim) {
  return is_supported(choose_prefill(80, head_dim, 2), {.head_dim = head_dim, .head_dim_v = head_dim});
}

// Every row of the prefill policy fits the smallest GPU that is supported.
static_assert(prefill_for(16) && prefill_for(64) && prefill_for(80) && prefill_for(96) && prefill_for(112));
static_assert(prefill_for(128) && prefill_for(192) && prefill_for(256));
static_assert(is_supported(choose_decode_simt(80, 64, 2), {.head_dim = 1, .head_dim_v = 256}));

constexpr Support hopper_prefill_for(int head_dim, int head_dim_v, int arch = 90) {
  return is_supported(choose_prefill_sm90(head_dim, head_dim_v, false),
                      {.arch = arch, .head_dim = head_dim, .head_dim_v = head_dim_v});
}

// Every row of Hopper's fits its shared memory, of equal head sizes and of unequal ones.
static_assert(hopper_prefill_for(64, 64) && hopper_prefill_for(96, 96) && hopper_prefill_for(128, 128));
static_assert(hopper_prefill_for(192, 192) && hopper_prefill_for(256, 256));
static_assert(hopper_prefill_for(192, 128) && hopper_prefill_for(64, 256) && hopper_prefill_for(256, 64));

TablesView<Space::device> bounds(std::int64_t num_seqs, int max_q_len, int max_kv_len) {
  TablesView<Space::device> tables;
  tables.kv_len.extents[0] = num_seqs;
  tables.max_q_len = max_q_len;
  tables.max_kv_len = max_kv_len;
  return tables;
}

}  // namespace

TEST_CASE("what a kernel does not support comes with a reason") {
  const auto reason = [](const Support& support) { return std::string_view(support.reason ? support.reason : ""); };
  CHECK(reason(is_supported(choose_decode_simt(80, 257, 2), {.head_dim = 257, .head_dim_v = 64})) ==
        "head_dim must be 1 to 256");
  CHECK(reason(is_supported(choose_decode_simt(80, 64, 2), {.arch = 75, .head_dim = 64, .head_dim_v = 64})) ==
        "needs compute capability 8.0");
  CHECK(reason(prefill_for(72)) == "head_dim must be a multiple of 16 up to 256");
  CHECK(reason(is_supported(choose_prefill(80, 64, 4), {.head_dim = 64, .head_dim_v = 64, .element_bytes = 4})) ==
        "q, K and V must be of 16-bit elements");
  CHECK(reason(is_supported(choose_prefill(80, 128, 2), {.head_dim = 128, .head_dim_v = 128}, 48 * 1024)) ==
        "query and key tiles do not fit in shared memory");
}

TEST_CASE("a policy that its kernel does not compile or run with is not supported") {
  constexpr KernelShape shape{.head_dim = 64, .head_dim_v = 64};
  const PrefillPolicy prefill = choose_prefill(80, 64, 2);
  const auto prefill_with = [&](auto&& change) {
    PrefillPolicy policy = prefill;
    change(policy);
    return bool(is_supported(policy, shape));
  };
  CHECK(prefill_with([](auto&) {}));
  CHECK(prefill_with([](auto& policy) { policy.warps = policy.query_tile / 16; }));
  CHECK_FALSE(prefill_with([](auto& policy) { policy.stages = 0; }));
  CHECK_FALSE(prefill_with([](auto& policy) { policy.ctas_per_sm = 0; }));
  CHECK_FALSE(prefill_with([](auto& policy) { policy.warps = policy.query_tile / 48; }));
  CHECK_FALSE(prefill_with([](auto& policy) { policy.key_tile = 0; }));
  CHECK_FALSE(prefill_with([](auto& policy) { policy.key_tile = 40; }));
  CHECK_FALSE(prefill_with([](auto& policy) { policy = {.query_tile = 0, .key_tile = 64, .warps = 0, .stages = 2}; }));
  CHECK_FALSE(prefill_with([](auto& policy) { policy = {.query_tile = 48, .key_tile = 64, .warps = 3, .stages = 2}; }));
  CHECK_FALSE(prefill_with([](auto& policy) { policy = {.query_tile = 16, .key_tile = 64, .warps = 1, .stages = 2}; }));

  const DecodeSimtPolicy decode = choose_decode_simt(80, 64, 2);
  const auto decode_with = [&](int DecodeSimtPolicy::* field, int value) {
    DecodeSimtPolicy policy = decode;
    policy.*field = value;
    return bool(is_supported(policy, shape));
  };
  CHECK(decode_with(&DecodeSimtPolicy::split_keys, 64));
  for (const int value : {-32, 0, 48}) CHECK_FALSE(decode_with(&DecodeSimtPolicy::split_keys, value));
  for (const int value : {0, 33}) CHECK_FALSE(decode_with(&DecodeSimtPolicy::max_warps, value));
  for (const auto field : {&DecodeSimtPolicy::query_tile, &DecodeSimtPolicy::ctas_per_sm, &DecodeSimtPolicy::max_ctas})
    CHECK_FALSE(decode_with(field, 0));
}

TEST_CASE("prefill_sm90 says what it is not made for: other GPUs, head sizes without a tile, policies it cannot run") {
  const auto reason = [](const Support& support) { return std::string_view(support.reason ? support.reason : ""); };
  CHECK(reason(hopper_prefill_for(128, 128, 80)) == "needs compute capability 9.0");
  CHECK(reason(hopper_prefill_for(128, 128, 100)) == "needs compute capability 9.0");
  CHECK(reason(hopper_prefill_for(80, 80)) == "head_dim must be 64, 96, 128, 192 or 256");
  CHECK(reason(hopper_prefill_for(128, 112)) == "head_dim_v must be 64, 96, 128, 192 or 256");

  constexpr KernelShape shape{.arch = 90, .head_dim = 64, .head_dim_v = 64};
  const auto runs_with = [&](auto&& change) {
    PrefillSm90Policy policy = choose_prefill_sm90(64, 64, false);
    change(policy);
    return bool(is_supported(policy, shape));
  };
  CHECK(runs_with([](auto&) {}));
  for (const int rows : {0, 64, 100, 256}) CHECK_FALSE(runs_with([&](auto& policy) { policy.query_tile = rows; }));
  for (const int keys : {0, 8, 72, 272}) CHECK_FALSE(runs_with([&](auto& policy) { policy.key_tile = keys; }));
  CHECK_FALSE(runs_with([](auto& policy) { policy.key_stages = 1; }));
  CHECK_FALSE(runs_with([](auto& policy) { policy.value_stages = 20; }));
  CHECK_FALSE(runs_with([](auto& policy) { policy.query_buffers = 0; }));
}

TEST_CASE("where a split ends depends on the policy alone, never on the batch") {
  const DecodeSimtPolicy policy = choose_decode_simt(90, 128, 2);
  for (const int max_kv_len : {0, 1, 255, 256, 257, 5000, 1 << 20}) {
    for (const std::int64_t num_seqs : {1, 7, 100'000}) {
      const auto tables = bounds(num_seqs, 1, max_kv_len);
      const DecodeSchedule schedule = schedule_decode(policy, tables, {static_cast<int>(num_seqs), 32, 8}, 132, 16384);
      CHECK(schedule.plan.split_keys == policy.split_keys);
    }
  }
}

TEST_CASE("partials and counters of a schedule always fit the workspace") {
  pagedkv_test::Random random(5);
  for (int i = 0; i < 10'000; ++i) {
    const DecodeSimtPolicy policy = choose_decode_simt(90, 128, 2);
    const auto tables = bounds(random.between(0, 300), random.between(0, 40), random.between(0, 70'000));
    const int kv_heads = random.between(1, 8), q_heads = kv_heads * random.between(1, 16);
    const int num_tokens = random.between(0, 400), max_partials = random.between(0, 40'000);
    const DecodeSchedule schedule = schedule_decode(policy, tables, {num_tokens, q_heads, kv_heads}, 132, max_partials);
    CHECK(schedule.num_shares >= 1);
    CHECK(schedule.num_shares <= schedule.plan.max_splits);
    CHECK(schedule.warps >= 1);
    CHECK(schedule.warps <= policy.max_warps);
    CHECK(schedule.units == schedule.plan.num_tiles() * kv_heads * schedule.num_shares);
    CHECK(schedule.num_ctas <= schedule.units);
    if (schedule.num_shares == 1) continue;
    CHECK(std::int64_t{num_tokens} * q_heads * schedule.plan.max_splits <= max_partials);
    CHECK(schedule.plan.num_tiles() * kv_heads <= max_partials);
  }
}

TEST_CASE("one long sequence is shared among many CTAs, a full batch is not") {
  const DecodeSimtPolicy policy = choose_decode_simt(90, 128, 2);
  CHECK(schedule_decode(policy, bounds(1, 1, 65'536), {1, 32, 8}, 132, 16384).num_shares == 264);
  CHECK(schedule_decode(policy, bounds(512, 1, 65'536), {512, 32, 8}, 132, 1 << 30).num_shares == 1);
}

TEST_CASE("dispatch calls the named head_dim and refuses the others by name") {
  std::vector<int> called;
  const auto record = [&](auto head_dim) { called.push_back(head_dim.value); };
  with_head_dim(HeadDims<64, 128>{}, 128, "test", record);
  with_head_dim(HeadDims<64, 128>{}, 64, "test", record);
  CHECK(called == std::vector<int>{128, 64});
  CHECK_THROWS_WITH_AS(with_head_dim(HeadDims<64, 128>{}, 80, "test", record),
                       doctest::Contains("test: head_dim one of those named, 64, 128 expected, 80 given"),
                       InvalidArgument);
}

TEST_CASE("decode takes lone tiles for few heads where it may, else wide ones for more rows than a narrow one holds") {
  using enum DecodeTile;
  for (const bool may_be_lone : {false, true}) {
    CHECK(choose_decode_tile(128, 9, 17, 132, may_be_lone) == wide);
    CHECK(choose_decode_tile(128, 64, 1, 132, may_be_lone) == wide);
    CHECK(choose_decode_tile(192, 64, 1, 132, may_be_lone) == narrow);
    CHECK(choose_decode_tile(128, 8, 17, 132, may_be_lone) == narrow);
  }
  CHECK(choose_decode_tile(128, 8, 16, 132, true) == lone);
  CHECK(choose_decode_tile(128, 32, 16, 132, true) == lone);
  CHECK(choose_decode_tile(128, 8, 16, 132, false) == narrow);
  CHECK(choose_decode_tile(128, 32, 16, 132, false) == wide);
}

TEST_CASE(
    "all tiles of decode fit an H200 at every head_dim, narrow ones every supported GPU, and units stay as long") {
  for (const int head_dim : {16, 48, 64, 80, 96, 112, 128, 192, 256}) {
    CAPTURE(head_dim);
    const KernelShape shape{.arch = 80, .head_dim = head_dim, .head_dim_v = head_dim};
    const auto unit_keys = [](const DecodePolicy& policy) { return 16 * policy.warps * policy.piece_tiles; };
    for (const DecodeTile tile : {DecodeTile::narrow, DecodeTile::lone, DecodeTile::wide}) {
      const DecodePolicy policy = choose_decode(tile, head_dim, head_dim);
      CHECK(is_supported(policy, shape, 227 * 1024));
      CHECK(unit_keys(policy) == (head_dim <= 128 ? 512 : 256));
    }
    CHECK(is_supported(choose_decode(DecodeTile::narrow, head_dim, head_dim), shape));
  }
}

TEST_CASE("a sequence is prefill's from the query on whose rows no tile of decode holds, drafts of a token never are") {
  constexpr int decode_rows = 16;
  static_assert(choose_decode(DecodeTile::wide, 128, 128).rows == decode_rows);
  for (const int packed_heads : {1, 2, 4, 8, 16}) {
    const int least = prefill_min_q_len(packed_heads);
    CAPTURE(packed_heads);
    CHECK(least >= 9);
    CHECK(least * packed_heads > decode_rows);
    CHECK((least == 9 || (least - 1) * packed_heads <= decode_rows));
  }
}
