// What the bits of cpu::attend do not depend on: threads, company in the batch, query tiles, block size, tables,
// poison.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cpu/attend.hpp"
#include "pagedkv/cpu/executor.hpp"
#include "support/problem_generator.hpp"
#include "support/tolerance.hpp"

using namespace pagedkv;
using namespace pagedkv_test;

namespace {

constexpr cpu::AttendOptions small_tiles{.query_tile = 4, .key_tile = 8, .split_keys = 16};

const auto rule = chain(SlidingWindow{.window = 60, .sink_tokens = 2}, SoftCap{.cap = 4.f});

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// The values of `from`, sequence by sequence, in another pool: other block size, order, ids and poison.
template <class T>
void copy_values(GeneratedProblem<T>& from, GeneratedProblem<T>& to, int from_sequence, int to_sequence) {
  const auto source = from.problem(), target = to.problem();
  const auto kv = to.template kv_view<Space::host>(to.pool.data());
  for (int key = 0; key < source.tables.kv_len(from_sequence); ++key) {
    const int from_block = source.tables.block_ids(from_sequence, key / from.shape.block_size);
    const int to_block = target.tables.block_ids(to_sequence, key / to.shape.block_size);
    const int from_slot = key % from.shape.block_size, to_slot = key % to.shape.block_size;
    for (int head = 0; head < source.kv_heads(); ++head) {
      for (int d = 0; d < source.head_dim(); ++d)
        kv.k(to_block, head, to_slot, d) = source.kv.k(from_block, head, from_slot, d);
      for (int d = 0; d < source.head_dim_v(); ++d)
        kv.v(to_block, head, to_slot, d) = source.kv.v(from_block, head, from_slot, d);
    }
  }
  const auto row = static_cast<std::size_t>(source.q_heads() * source.head_dim());
  const auto first = [&](const auto& problem, int sequence) {
    return static_cast<std::size_t>(problem.tables.query_begin(sequence)) * row;
  };
  const std::size_t count = row * static_cast<std::size_t>(target.tables.q_len(to_sequence));
  const std::size_t skipped =
      row * static_cast<std::size_t>(source.tables.q_len(from_sequence)) - count;  // keep the newest
  std::copy_n(from.q.data() + first(source, from_sequence) + skipped, count, to.q.data() + first(target, to_sequence));
}

ProblemShape long_shape(std::uint64_t seed) {
  ProblemShape shape = random_shape(seed, {.head_dims = {16, 24}, .max_group_size = 4});
  shape.q_len = {1, 9, 30, 0, 5};
  shape.kv_len = {200, 131, 30, 64, 1};
  return shape;
}

}  // namespace

TEST_CASE("any number of threads gives the same bits") {
  GeneratedProblem<bf16, bf16, float> generated(long_shape(1));
  cpu::attend(generated.problem(), rule, cpu::InlineExecutor{}, small_tiles);
  const auto out = generated.out;
  const auto lse = generated.lse;
  for (const int num_threads : {1, 2, 3, 8}) {
    cpu::ThreadExecutor executor(num_threads);
    for (int run = 0; run < 20; ++run) {
      generated.clear_outputs();
      cpu::attend(generated.problem(), rule, executor, small_tiles);
      CHECK(same_bits(generated.out, out));
      CHECK(same_bits(generated.lse, lse));
    }
  }
}

TEST_CASE("a sequence gets the same bits alone and in a batch, at any block size and in any order of the axes") {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    GeneratedProblem<float> batch(long_shape(seed));
    cpu::attend(batch.problem(), rule, cpu::InlineExecutor{}, small_tiles);
    for (int s = 0; s < batch.shape.num_seqs(); ++s) {
      ProblemShape shape = batch.shape;
      shape.seed += 1000;
      shape.q_len = {batch.shape.q_len[static_cast<std::size_t>(s)]};
      shape.kv_len = {batch.shape.kv_len[static_cast<std::size_t>(s)]};
      shape.block_size = 1 + static_cast<int>(seed % 37);
      shape.order = static_cast<PoolOrder>(seed % 3);
      GeneratedProblem<float> alone(shape);
      copy_values(batch, alone, s, 0);
      cpu::attend(alone.problem(), rule, cpu::InlineExecutor{}, small_tiles);
      CAPTURE(s);
      CHECK_MESSAGE(same_bits(batch.rows_of(s), alone.rows_of(0)), alone.shape.describe());
    }
  }
}

TEST_CASE("a prompt in one piece and its last queries alone get the same bits, for any query tile") {
  ProblemShape shape = long_shape(3);
  shape.q_len = {90};
  shape.kv_len = {130};
  GeneratedProblem<float> whole(shape);
  cpu::attend(whole.problem(), rule, cpu::InlineExecutor{}, small_tiles);
  const std::vector<float> all = whole.rows_of(0);
  for (const int q_len : {1, 2, 7, 33, 90}) {
    shape.q_len = {q_len};
    GeneratedProblem<float> chunk(shape);
    copy_values(whole, chunk, 0, 0);
    for (const int query_tile : {1, 3, 4, 64}) {
      cpu::attend(chunk.problem(), rule, cpu::InlineExecutor{},
                  {.query_tile = query_tile, .key_tile = 8, .split_keys = 16});
      const std::vector<float> rows = chunk.rows_of(0);
      const std::size_t heads = static_cast<std::size_t>(shape.q_heads()),
                        dim = static_cast<std::size_t>(shape.head_dim_v);
      const std::size_t num_values = static_cast<std::size_t>(q_len) * heads * dim;
      CHECK(std::equal(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(num_values),
                       all.begin() + static_cast<std::ptrdiff_t>(90 * heads * dim - num_values)));
    }
  }
}

TEST_CASE("few rows, which take values as they are stored, and many, which convert them first, get the same bits") {
  ProblemShape shape{.seed = 12,
                     .q_len = {60},
                     .kv_len = {150},
                     .kv_heads = 2,
                     .group_size = 3,
                     .head_dim = 40,     // not a multiple of any vector
                     .head_dim_v = 128,  // a multiple of all of them
                     .block_size = 16};
  const auto check = [&](auto zero) {
    using T = decltype(zero);
    GeneratedProblem<T, T, float> generated(shape);
    const auto bits_for = [&](int query_tile) {
      generated.clear_outputs();
      cpu::attend(generated.problem(), rule, cpu::InlineExecutor{}, {.query_tile = query_tile});
      return generated.out;
    };
    const std::vector<float> many = bits_for(60);
    CHECK(mismatch(generated, expected_of(generated, rule), out_tolerance<float>()) == "");
    for (const int query_tile : {1, 2, 4, 16}) CHECK(same_bits(bits_for(query_tile), many));
  };
  for (const int head_dim : {40, 96}) {  // keys of 96 stay pairs of bf16
    shape.head_dim = head_dim;
    check(0.f);
    check(bf16{});
    check(f16{});
  }
}

TEST_CASE("few rows look up no block that a window has dropped, and get NaN from one that they see") {
  const ProblemShape shape{.seed = 13,
                           .q_len = {2},
                           .kv_len = {150},
                           .kv_heads = 1,
                           .group_size = 4,
                           .head_dim = 64,
                           .head_dim_v = 128,
                           .block_size = 16};
  GeneratedProblem<bf16, bf16, float> generated(shape);
  const SlidingWindow window{.window = 40, .sink_tokens = 5};
  const Expected expected = expected_of(generated, window);
  for (std::size_t block = 1; block < 6; ++block) generated.block_ids[block] = to_index(BlockId::none);
  cpu::attend(generated.problem(), window);
  CHECK(mismatch(generated, expected, out_tolerance<float>()) == "");
  cpu::attend(generated.problem(), Causal{});
  CHECK(std::isnan(generated.problem().lse(0, 0)));
  CHECK(std::isnan(generated.problem().out(1, 3, 127)));
}

TEST_CASE("split and unsplit results are close") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    GeneratedProblem<float> generated(long_shape(seed));
    const Expected expected = expected_of(generated, rule);
    for (const int split_keys : {8, 24, 1 << 30}) {
      generated.clear_outputs();
      cpu::attend(generated.problem(), rule, cpu::InlineExecutor{},
                  {.query_tile = 4, .key_tile = 8, .split_keys = split_keys});
      CHECK(mismatch(generated, expected, out_tolerance<float>()) == "");
    }
  }
}

TEST_CASE("blocks that a window has dropped are not looked up") {
  ProblemShape shape = long_shape(7);
  shape.q_len = {3};
  shape.kv_len = {150};
  shape.block_size = 4;  // half a tile of keys
  GeneratedProblem<float> generated(shape);
  const SlidingWindow window{.window = 20, .sink_tokens = 3};
  const Expected expected = expected_of(generated, window);
  const int oldest = 150 - 3 - 20 + 1;  // of the first query
  for (int block = 1; block < oldest / 4; ++block)
    generated.block_ids[static_cast<std::size_t>(block)] = to_index(BlockId::none);
  cpu::attend(generated.problem(), window, cpu::InlineExecutor{}, small_tiles);
  CHECK(mismatch(generated, expected, out_tolerance<float>()) == "");
}

TEST_CASE(
    "blocks that a chain of windows has dropped may be gone, also where the chain has to name some of their keys") {
  ProblemShape shape = long_shape(8);
  shape.q_len = {3};
  shape.kv_len = {150};
  shape.block_size = 4;
  GeneratedProblem<float> generated(shape);
  const auto drop = [&](int first_key, int end) {  // whole blocks in between
    for (int block = ceil_div(first_key, 4); block < end / 4; ++block)
      generated.block_ids[static_cast<std::size_t>(block)] = block % 2 ? -1 : std::numeric_limits<std::int32_t>::max();
  };
  const auto seen = [&](const auto& windows) { return seen_keys(windows, 147, 149, 150); };

  const auto windows = chain(SlidingWindow{.window = 60, .sink_tokens = 3}, SlidingWindow{.window = 20});
  const auto wide =
      chain(SlidingWindow{.window = 20, .sink_tokens = 60}, SlidingWindow{.window = 120, .sink_tokens = 2});
  REQUIRE(seen(wide).contains(20));  // between the sinks that both keep and the oldest key of the longer window
  const Expected of_wide = expected_of(generated, wide), of_windows = expected_of(generated, windows);
  drop(2, 147 - 120 + 1);
  drop(60, 147 - 20 + 1);
  cpu::attend(generated.problem(), wide, cpu::InlineExecutor{}, small_tiles);
  CHECK(mismatch(generated, of_wide, out_tolerance<float>()) == "");

  REQUIRE_FALSE(seen(windows).contains(147 - 20));
  drop(0, 147 - 20 + 1);
  generated.clear_outputs();
  cpu::attend(generated.problem(), windows, cpu::InlineExecutor{}, small_tiles);
  CHECK(mismatch(generated, of_windows, out_tolerance<float>()) == "");

  cpu::attend(generated.problem(), Causal{}, cpu::InlineExecutor{}, small_tiles);  // sees what is gone
  CHECK(std::isnan(generated.lse[generated.margin]));
}

TEST_CASE("slots of a live block that no query may see can hold anything") {
  ProblemShape shape = long_shape(9);
  shape.q_len = {2};
  shape.kv_len = {100};
  GeneratedProblem<float> generated(shape);
  const SlidingWindow window{.window = 30, .sink_tokens = 5};
  const Expected expected = expected_of(generated, window);
  const auto problem = generated.problem();
  const auto kv = generated.kv_view<Space::host>(generated.pool.data());
  for (int key = 5; key <= 100 - 2 - 30; ++key) {
    const int block = problem.tables.block_ids(0, key / shape.block_size);
    for (int head = 0; head < shape.kv_heads; ++head) {
      kv.k(block, head, key % shape.block_size, 0) = std::nanf("");
      kv.v(block, head, key % shape.block_size, 0) = infinity;
    }
  }
  cpu::attend(problem, window, cpu::InlineExecutor{}, small_tiles);
  CHECK(mismatch(generated, expected, out_tolerance<float>()) == "");
}

TEST_CASE("many long prompts run in several waves of bounded scratch, with the same bits as one by one") {
  ProblemShape shape{
      .seed = 11, .q_len = {}, .kv_len = {}, .kv_heads = 2, .group_size = 8, .head_dim = 1, .head_dim_v = 1};
  for (int s = 0; s < 12; ++s) {
    shape.q_len.push_back(120);
    shape.kv_len.push_back(120);
  }
  GeneratedProblem<float> batch(shape);  // 12 * 120 * 16 rows of about four pieces: more than a wave
  cpu::attend(batch.problem(), Causal{}, cpu::InlineExecutor{}, small_tiles);
  shape.q_len.resize(1);
  shape.kv_len.resize(1);
  GeneratedProblem<float> alone(shape);
  for (int s = 0; s < 12; ++s) {
    copy_values(batch, alone, s, 0);
    cpu::attend(alone.problem(), Causal{}, cpu::InlineExecutor{}, small_tiles);
    CHECK(same_bits(batch.rows_of(s), alone.rows_of(0)));
  }
}
