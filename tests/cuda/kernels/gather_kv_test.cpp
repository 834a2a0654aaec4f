// The gather kernel's own source, run on the host by emulated warps, against plain loops over rows.
// clang-format off
#include "support/warp_emulator.hpp"  // before the kernel: it defines CUDA's words
// clang-format on

#include "pagedkv/cuda/kernels/gather_kv.cuh"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "pagedkv/storage/pieces.hpp"
#include "support/random.hpp"
#include "support/run_grid.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr cuda::MovePolicy small{.threads = 32, .pieces_per_thread = 2, .max_ctas = 1};

/// Sequences of the given lengths in shuffled blocks of random bits; ids behind a sequence's end are invalid.
struct Batch {
  Batch(const KvLayout& layout_of_pool, std::vector<std::int32_t> lengths)
      : layout(layout_of_pool),
        kv_len(std::move(lengths)),
        pool(static_cast<std::size_t>(layout.num_elements())),
        block_ids(kv_len.size() * width, std::numeric_limits<std::int32_t>::max()) {
    Random random(4);
    for (bf16& x : pool) x.bits = static_cast<std::uint16_t>(random.next());
    std::int32_t id = 0;
    for (std::size_t s = 0; s < kv_len.size(); ++s) {
      for (int i = 0; i * layout.block_size < kv_len[s]; ++i)
        block_ids[s * width + static_cast<std::size_t>(i)] = id++ * 7 % static_cast<int>(layout.num_blocks);
      key_begin.push_back(key_begin.back() + kv_len[s]);
    }
  }

  TablesView<Space::device> tables() const {
    const auto num_seqs = std::ssize(kv_len);
    return {.block_ids = dense_view<Space::device>(block_ids.data(), {num_seqs, static_cast<std::int64_t>(width)}),
            .kv_len = dense_view<Space::device>(kv_len.data(), {num_seqs}),
            .query_begin = {}};
  }

  template <class P>
  void check(bool is_one_sequence = false, int num_spare_rows = 3) {
    using Config = cuda::MoveConfig<P, P, small>;
    const std::int64_t num_rows = key_begin.back() + num_spare_rows, heads = layout.kv_heads;
    const bf16 canary = from_float<bf16>(-1.f);
    std::vector<bf16> k(static_cast<std::size_t>(num_rows * heads * layout.head_dim), canary), expected_k = k;
    std::vector<bf16> v(static_cast<std::size_t>(num_rows * heads * layout.value_dim()), canary), expected_v = v;
    const auto view = [&](std::vector<bf16>& rows, int dim) {
      return dense_view<Space::device>(rows.data(), {num_rows, heads, dim});
    };
    const auto layer = layers_view<Space::device>(static_cast<const bf16*>(pool.data()), layout).first;
    const auto expect = [&](const auto& blocks, const auto& rows) {
      for (std::size_t s = 0; s < kv_len.size(); ++s)
        for (int position = 0; position < kv_len[s]; ++position)
          for (int head = 0; head < heads; ++head)
            for (int d = 0; d < rows.extents[2]; ++d) {
              const std::int32_t id = block_ids[s * width + static_cast<std::size_t>(position / layout.block_size)];
              if (id >= 0) rows(key_begin[s] + position, head, d) = blocks(id, head, position % layout.block_size, d);
            }
    };
    expect(layer.k, view(expected_k, layout.head_dim));
    expect(layer.v, view(expected_v, layout.value_dim()));

    const auto count = static_cast<std::int64_t>(sizeof(P) / sizeof(bf16));
    const std::int64_t num_pieces = num_rows * heads * max(layout.head_dim, layout.value_dim()) / count;
    const KvView<const P, Space::device> pieces{.k = in_pieces<P>(layer.k), .v = in_pieces<P>(layer.v)};
    View<const std::int32_t, 1, Space::device> begins{};
    if (!is_one_sequence) begins = dense_view<Space::device>(key_begin.data(), {std::ssize(key_begin)});
    run_grid({static_cast<unsigned>(ceil_div<std::int64_t>(num_pieces, Config::tile_pieces)), 2}, Config::threads, [&] {
      cuda::kv_gather_kernel<Config>(tables(), begins, pieces, in_pieces<P>(view(k, layout.head_dim)),
                                     in_pieces<P>(view(v, layout.value_dim())), cuda::make_piece_shape(pieces));
    });
    const auto same = [](const std::vector<bf16>& a, const std::vector<bf16>& b) {
      return std::equal(a.begin(), a.end(), b.begin(), [](bf16 x, bf16 y) { return x.bits == y.bits; });
    };
    CHECK(same(k, expected_k));
    CHECK(same(v, expected_v));
  }

  static constexpr std::size_t width = 9;
  KvLayout layout;
  std::vector<std::int32_t> kv_len;
  std::vector<bf16> pool;
  std::vector<std::int32_t> block_ids;
  std::vector<std::int32_t> key_begin{0};
};

}  // namespace

TEST_CASE("the gather kernel puts every sequence's rows behind those of the one before, and writes nothing else") {
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    KvLayout layout{.num_blocks = 29, .kv_heads = 2, .block_size = 5, .head_dim = 16, .order = order};
    SUBCASE("in pieces of 16 bytes") { Batch(layout, {0, 13, 0, 0, 1, 45, 5, 0}).check<Piece<16>>(); }
    SUBCASE("many sequences in one tile") { Batch(layout, std::vector<std::int32_t>(60, 1)).check<Piece<16>>(); }
    SUBCASE("one sequence, without offsets") { Batch(layout, {42}).check<Piece<16>>(true); }
    SUBCASE("no row at all") { Batch(layout, {0, 0}).check<Piece<16>>(); }
    SUBCASE("element by element, where K and V have odd and unequal rows") {
      layout.head_dim = 3;
      layout.head_dim_v = 7;
      Batch(layout, {7, 0, 20}).check<Piece<2>>();
    }
    SUBCASE("blocks that a window has dropped leave their rows alone") {
      Batch batch(layout, {23, 40});
      batch.block_ids[1] = batch.block_ids[Batch::width] = to_index(BlockId::none);
      batch.check<Piece<16>>();
    }
  }
}

TEST_CASE("every row is found by its sequence, empty ones in between or not") {
  const std::vector<std::int32_t> begins{0, 0, 3, 3, 3, 10, 11, 11};
  const auto view = dense_view(begins.data(), {std::ssize(begins)});
  const int owners[] = {1, 1, 1, 4, 4, 4, 4, 4, 4, 4, 5};
  for (int row = 0; row < 11; ++row) {
    CAPTURE(row);
    CHECK(cuda::detail::find_sequence(view, {0, 7}, row) == owners[row]);
    for (int last = row; last < 11; ++last) {
      const auto found = cuda::detail::find_sequences(view, row, last);
      CHECK(found.begin == owners[row]);
      CHECK((found.end > owners[last] && (found.end == found.begin + 1) == (owners[row] == owners[last])));
    }
  }
}
