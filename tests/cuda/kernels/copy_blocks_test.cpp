// The copy kernel's own source, run on the host by emulated warps, against plain loops over rows.
// clang-format off
#include "support/warp_emulator.hpp"  // before the kernel: it defines CUDA's words
// clang-format on

#include "pagedkv/cuda/kernels/copy_blocks.cuh"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "pagedkv/storage/pieces.hpp"
#include "support/random.hpp"
#include "support/run_grid.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr cuda::MovePolicy small{.threads = 32, .pieces_per_thread = 2, .max_ctas = 40};

/// A pool of random bits, and what the copies should make of it.
struct Pool {
  explicit Pool(const KvLayout& layout_of_pool) : layout(layout_of_pool), elements(size()) {
    Random random(1);
    for (bf16& x : elements) x.bits = static_cast<std::uint16_t>(random.next());
    expected = elements;
  }

  std::size_t size() const { return static_cast<std::size_t>(layout.num_elements()); }

  void expect(const BlockCopy& copy) {
    const auto layers = layers_view(expected.data(), layout);
    for (int i = 0; i < layout.num_layers; ++i)
      for (const auto& blocks : {layers.layer(i).k, layers.layer(i).v})
        for (int head = 0; head < layout.kv_heads; ++head)
          for (int slot = 0; slot < copy.num_rows; ++slot)
            for (int d = 0; d < blocks.extents[3]; ++d)
              blocks(to_index(copy.destination), head, slot, d) = blocks(to_index(copy.source), head, slot, d);
  }

  bool as_expected() const {
    for (std::size_t i = 0; i < size(); ++i)
      if (elements[i].bits != expected[i].bits) return false;
    return true;
  }

  KvLayout layout;
  std::vector<bf16> elements, expected;
};

template <class P>
void copy(Pool& pool, const std::vector<BlockCopy>& copies) {
  using Config = cuda::MoveConfig<P, P, small>;
  const auto layers = layers_view<Space::device>(pool.elements.data(), pool.layout);
  const auto pieces = in_pieces<P>(layers);
  const auto list = dense_view<Space::device>(copies.data(), {std::ssize(copies)});
  const cuda::CopyGrid grid = cuda::make_copy_grid(std::ssize(copies), pieces, small);
  run_grid({static_cast<unsigned>(grid.num_copies), static_cast<unsigned>(2 * grid.num_tiles),
            static_cast<unsigned>(grid.num_groups)},
           Config::threads, [&] {
             cuda::block_copy_kernel<Config>(list, pieces, cuda::make_piece_shape(pieces.first), grid.layers_per_cta);
           });
  CHECK(pool.as_expected());
}

const std::vector<BlockCopy> mixed{{BlockId{0}, BlockId{5}, 6},
                                   {BlockId{3}, BlockId{1}, 1},
                                   {BlockId{4}, BlockId{2}, 5},
                                   {BlockId::none, BlockId::none, 0}};

}  // namespace

TEST_CASE("the copy kernel moves the valid rows of every copy in every layer, and not a byte elsewhere") {
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    KvLayout layout{.num_layers = 5, .num_blocks = 6, .kv_heads = 3, .block_size = 6, .head_dim = 40, .order = order};
    SUBCASE("in pieces of 16 bytes") {
      Pool pool(layout);
      for (const BlockCopy& one : mixed) pool.expect(one);
      copy<Piece<16>>(pool, mixed);
    }
    SUBCASE("element by element, where K and V have odd and unequal rows") {
      layout.head_dim = 7;
      layout.head_dim_v = 11;
      Pool pool(layout);
      for (const BlockCopy& one : mixed) pool.expect(one);
      copy<Piece<2>>(pool, mixed);
    }
  }
}

TEST_CASE("dead copies are not read behind their number of rows") {
  Pool pool({.num_blocks = 2, .kv_heads = 1, .block_size = 4, .head_dim = 8});
  copy<Piece<16>>(pool, std::vector<BlockCopy>(3, {BlockId::none, BlockId::none, 0}));
}

TEST_CASE("few copies have a CTA for each tile and layer, many share CTAs among layers") {
  const auto grid = [](std::int64_t num_copies, int num_layers) {
    const KvView<Piece<16>, Space::device> layer{.k = {.extents = {9999, 8, 16, 16}},
                                                 .v = {.extents = {9999, 8, 16, 16}}};
    return cuda::make_copy_grid(
        num_copies, KvLayers<Piece<16>, Space::device>{.first = layer, .num_layers = num_layers}, cuda::choose_move());
  };
  for (const int num_layers : {1, 7, 32, 126}) {
    for (const std::int64_t num_copies : {1, 16, 100, 1024, 4096, 1 << 20}) {
      const cuda::CopyGrid cut = grid(num_copies, num_layers);
      CAPTURE(num_layers);
      CAPTURE(num_copies);
      CHECK(cut.num_tiles == 4);
      CHECK(cut.num_groups * cut.layers_per_cta >= num_layers);
      CHECK((cut.num_groups - 1) * cut.layers_per_cta < num_layers);
      CHECK((cut.num_groups == 1 || 2 * cut.num_tiles * num_copies * cut.num_groups <= cuda::choose_move().max_ctas));
    }
  }
  CHECK(grid(16, 32).layers_per_cta == 1);
  CHECK(grid(1024, 32).num_groups == 2);
}
