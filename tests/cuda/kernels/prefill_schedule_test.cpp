// The list of tiles that nobody writes down: every tile is in it once, longest first, and CTAs that take tiles in any
// order share it out among them.
// clang-format off
#include "support/hopper_emulator.hpp"  // before the kernel: it defines CUDA's words
// clang-format on

#include "pagedkv/cuda/kernels/prefill_schedule.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "pagedkv/attention/variants.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/cuda/kernels/prefill_sm90.cuh"
#include "pagedkv/cuda/tile/key_tiles.hpp"
#include "support/problem_generator.hpp"
#include "support/random.hpp"
#include "support/run_grid.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv::cuda;
using namespace pagedkv_test;

/// As much of a kernel's Config as finding tiles takes; small tiles, so that there are many.
struct Config {
  static constexpr int query_tile = 8, key_tile = 16, head_dim_v = 16, tiles_ahead = 3;
  static constexpr bool splits_keys = false;
  using Work = PrefillWork;

  struct Signals {
    ptx::Mbarrier tile_full[tiles_ahead], tile_empty[tiles_ahead];
    PrefillWork tile[tiles_ahead];
  };
};

/// Sequence, first query, first head.
using Tile = std::tuple<int, int, int>;

/// No sequence, or some, up to 70; most of them short, some without queries, some without keys.
ProblemShape random_batch(std::uint64_t seed) {
  Random random(seed);
  ProblemShape shape{.seed = seed,
                     .q_len = {},
                     .kv_len = {},
                     .kv_heads = random.between(1, 4),
                     .group_size = random.pick({1, 2, 3, 4, 6, 8}),
                     .spare_tokens = random.between(0, 2)};
  for (int s = random.pick({1, 5, 31, 32, 33, 64, 70}); s > 0; --s) {
    shape.q_len.push_back(random.one_in(3) ? random.pick({0, 1, 40}) : random.between(0, 12));
    shape.kv_len.push_back(random.one_in(6) ? 0 : shape.q_len.back() + random.between(0, 30));
  }
  return shape;
}

PrefillCut random_cut(const ProblemShape& shape, Random& random) {
  PrefillCut cut;
  cut.num_seqs = shape.num_seqs();
  cut.min_q_len = random.pick({0, 0, 5});
  while (cut.packed_shift < 3 && shape.group_size % (2 << cut.packed_shift) == 0) ++cut.packed_shift;
  cut.tile_queries = Config::query_tile >> cut.packed_shift;
  cut.head_tiles = shape.q_heads() >> cut.packed_shift;
  cut.section = random.between(1, cut.head_tiles);
  cut.group_tiles = Divisor(shape.group_size >> cut.packed_shift);
  return cut;
}

/// The whole list, from the beginning to the end.
std::vector<Tile> list_tiles(const PrefillCut& cut, const ProblemShape& shape) {
  std::vector<Tile> tiles;
  for (int s = 0; s < shape.num_seqs(); ++s) {
    const int q_len = shape.q_len[static_cast<std::size_t>(s)];
    for (int index = 0; index < cut.num_tiles(q_len); ++index) {
      const PrefillPlace place = place_of(cut, q_len, index);
      tiles.emplace_back(s, place.query_tile * cut.tile_queries, place.head_tile << cut.packed_shift);
    }
  }
  return tiles;
}

/// Is this how a tile is described, under Causal?
bool is_sound(const PrefillWork& work, const PrefillCut& cut, const GeneratedProblem<bf16>& generated) {
  const auto s = static_cast<std::size_t>(work.sequence);
  const int q_len = generated.shape.q_len[s], kv_len = generated.kv_len[s];
  const int last_query = std::min(work.first_query + cut.tile_queries, q_len) - 1;
  const int last_key = std::min(last_query + kv_len - q_len, kv_len - 1);  // that the last query sees
  return work.last_query == last_query && work.kv_len == kv_len && work.offset == kv_len - q_len &&
         work.first_token == generated.query_begin[s] && work.kv_head == work.q_head / generated.shape.group_size &&
         work.last_tile == (last_key < 0 ? -1 : last_key / Config::key_tile * Config::key_tile);
}

/// Tiles in the order in which the CTAs' other warps get them, which must be sound.
std::vector<Tile> take_all(GeneratedProblem<bf16>& generated, const PrefillCut& cut, unsigned num_ctas,
                           std::uint64_t seed, PrefillCounters& counters) {
  const auto problem = generated.problem();
  std::vector<Tile> taken;
  bool sound = true;
  run_grid_together(num_ctas, seed, [&] {
    emulator.run(64, [&] {
      alignas(8) static __shared__ unsigned char bytes[sizeof(Config::Signals)];
      auto& signals = *reinterpret_cast<Config::Signals*>(bytes);
      if (threadIdx.x == 0) {
        for (int i = 0; i < Config::tiles_ahead; ++i) {
          ptx::mbarrier_init(signals.tile_full[i], 1);
          ptx::mbarrier_init(signals.tile_empty[i], 1);
        }
      }
      __syncthreads();
      if (threadIdx.x < 32) {
        cuda::detail::take_tiles<Config>(signals, problem, Causal{}, cut, {}, counters);
      } else {
        cuda::detail::for_each_tile<Config>(signals, [&](const PrefillWork& work) {
          if (cuda::detail::lane_id() != 0) return;
          sound &= is_sound(work, cut, generated);
          taken.emplace_back(work.sequence, work.first_query, work.q_head);
        });
      }
    });
  });
  CHECK(sound);
  return taken;
}

/// Tiles whose rows see no key are nobody's but the finder's, who has written them.
std::vector<Tile> without_blind(std::vector<Tile> tiles, const PrefillCut& cut,
                                const GeneratedProblem<bf16>& generated) {
  std::erase_if(tiles, [&](const Tile& tile) {
    const auto s = static_cast<std::size_t>(std::get<0>(tile));
    const int q_len = generated.shape.q_len[s], kv_len = generated.kv_len[s];
    const int last_query = std::min(std::get<1>(tile) + cut.tile_queries, q_len) - 1;
    return kv_len == 0 || last_query + kv_len - q_len < 0;
  });
  return tiles;
}

/// Rows of blind tiles hold nothing, all others what clear_outputs() has left there.
bool blind_rows_hold_nothing(const GeneratedProblem<bf16>& generated, const PrefillCut& cut) {
  const int heads = generated.shape.q_heads();
  bool sound = generated.canaries_intact();
  for (std::size_t s = 0; s < generated.kv_len.size(); ++s) {
    const int q_len = generated.shape.q_len[s], kv_len = generated.kv_len[s];
    for (int query = 0; query < q_len; ++query) {
      const int last_query = std::min(query / cut.tile_queries * cut.tile_queries + cut.tile_queries, q_len) - 1;
      const bool blind = q_len >= cut.min_q_len && (kv_len == 0 || last_query + kv_len - q_len < 0);
      for (int head = 0; head < heads; ++head) {
        const auto row = static_cast<std::size_t>((generated.query_begin[s] + query) * heads + head);
        sound &= generated.lse[generated.margin + row] == (blind ? -infinity : -12345.f);
        for (std::size_t d = 0; d < 16; ++d) {
          const bf16 expected = from_float<bf16>(blind ? 0.f : -12345.f);
          sound &= generated.out[generated.margin + row * 16 + d].bits == expected.bits;
        }
      }
    }
  }
  return sound;
}

}  // namespace

TEST_CASE("a sequence's tiles are each place once: section by section, and in a section the last queries first") {
  Random random(1);
  for (int i = 0; i < 2000; ++i) {
    PrefillCut cut;
    cut.tile_queries = random.pick({1, 3, 8, 128});
    cut.head_tiles = random.between(1, 12);
    cut.section = random.between(1, cut.head_tiles + 1);
    cut.min_q_len = random.pick({0, 0, 9});
    const int q_len = random.between(0, 5 * cut.tile_queries);
    const int query_tiles = q_len < cut.min_q_len ? 0 : ceil_div(q_len, cut.tile_queries);
    REQUIRE(cut.num_tiles(q_len) == query_tiles * cut.head_tiles);
    std::set<std::pair<int, int>> places;
    std::pair<int, int> last{-1, -1};  // section, and query tile from the end
    bool sound = true;
    for (int index = 0; index < cut.num_tiles(q_len); ++index) {
      const PrefillPlace place = place_of(cut, q_len, index);
      sound &= place.query_tile >= 0 && place.query_tile < query_tiles;
      sound &= place.head_tile >= 0 && place.head_tile < cut.head_tiles;
      sound &= places.emplace(place.query_tile, place.head_tile).second;
      const std::pair now{place.head_tile / cut.section, query_tiles - 1 - place.query_tile};
      sound &= now >= last;
      last = now;
    }
    CHECK(sound);
  }
}

TEST_CASE("a tile of keys that a row can see lies in one share, shares follow each other and are as even as can be") {
  Random random(2);
  const auto check_rule = [&](const auto& rule) {
    for (int i = 0; i < 1000; ++i) {
      const int key_tile = random.pick({16, 80, 128}), kv_len = random.between(0, 2000);
      const int first = random.between(-5, kv_len), last = first + random.between(0, 100);  // positions
      const KeyRanges seen = seen_keys(rule, first, last, kv_len);
      const KeyRange keys{0, kv_len};
      const int num_splits = random.between(1, 9), in_all = last_key_tile(seen, keys, key_tile) / key_tile + 1;
      int end = -1;
      bool sound = true;
      std::set<int> tiles;
      for (int split = 0; split < num_splits; ++split) {
        const KeyRange own = keys_of_split(seen, keys, key_tile, split, num_splits);
        sound &= end == -1 || own.begin == end;
        sound &= own.end - own.begin <= ceil_div(in_all, num_splits) * key_tile;
        end = own.end;
        for (int tile = own.begin; tile < own.end; tile += key_tile) {
          sound &= tile % key_tile == 0;
          tiles.insert(tile);
        }
      }
      for (int tile = 0; tile < kv_len; tile += key_tile)
        sound &= !seen.touches({tile, min(tile + key_tile, kv_len)}) || tiles.contains(tile);
      CHECK(sound);
    }
  };
  check_rule(Causal{});
  check_rule(Full{});
  check_rule(SlidingWindow{.window = 300, .sink_tokens = 5});
}

TEST_CASE("a CTA alone takes every tile of a ragged batch in the list's order") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    GeneratedProblem<bf16> generated(random_batch(seed));
    const PrefillCut cut = random_cut(generated.shape, random);
    PrefillCounters counters{0, 0};
    CHECK(take_all(generated, cut, 1, seed, counters) ==
          without_blind(list_tiles(cut, generated.shape), cut, generated));
    CHECK(blind_rows_hold_nothing(generated, cut));
  }
}

TEST_CASE("CTAs take every tile once among them, whoever comes first, and leave the counters as they found them") {
  for (std::uint64_t seed = 100; seed < 130; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    GeneratedProblem<bf16> generated(random_batch(seed));
    const PrefillCut cut = random_cut(generated.shape, random);
    std::vector<Tile> expected = without_blind(list_tiles(cut, generated.shape), cut, generated);
    std::ranges::sort(expected);
    PrefillCounters counters{0, 0};
    for (const unsigned num_ctas : {2u, 7u}) {  // the second launch finds what the first has left
      std::vector<Tile> taken = take_all(generated, cut, num_ctas, seed, counters);
      std::ranges::sort(taken);
      CHECK(taken == expected);
      CHECK(counters.taken == 0);
      CHECK(counters.finished == 0);
    }
    CHECK(blind_rows_hold_nothing(generated, cut));
  }
}
