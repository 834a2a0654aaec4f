// The swap kernel's own source, run on the host by emulated warps, against plain loops over blocks.
// clang-format off
#include "support/warp_emulator.hpp"  // before the kernel: it defines CUDA's words
// clang-format on

#include "pagedkv/cuda/kernels/swap_blocks.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "pagedkv/storage/pieces.hpp"
#include "support/random.hpp"
#include "support/run_grid.hpp"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

constexpr cuda::MovePolicy small{.threads = 32, .pieces_per_thread = 2, .max_ctas = 3};

std::vector<bf16> random_pool(const KvLayout& layout, std::uint64_t seed) {
  Random random(seed);
  std::vector<bf16> pool(static_cast<std::size_t>(layout.num_elements()));
  for (bf16& x : pool) x.bits = static_cast<std::uint16_t>(random.next());
  return pool;
}

using Layers = KvLayers<bf16, Space::device>;

Layers plain_layers(bf16* data, const KvLayout& layout) { return layers_view<Space::device>(data, layout); }

void expect(const std::vector<BlockPair>& pairs, const Layers& source, const Layers& destination) {
  for (int i = 0; i < source.num_layers; ++i) {
    for (const BlockPair& pair : pairs) {
      const auto swap_one = [&](const auto& from, const auto& to) {
        for (std::int64_t head = 0; head < from.extents[1]; ++head)
          for (std::int64_t slot = 0; slot < from.extents[2]; ++slot)
            for (std::int64_t d = 0; d < from.extents[3]; ++d)
              to(to_index(pair.destination), head, slot, d) = from(to_index(pair.source), head, slot, d);
      };
      swap_one(source.layer(i).k, destination.layer(i).k);
      swap_one(source.layer(i).v, destination.layer(i).v);
    }
  }
}

/// layers_of(elements) is a pool over all of `elements`, on either side.
template <class P, class From, class To>
void check_swap(const std::vector<BlockPair>& pairs, std::vector<bf16> source, From&& source_layers,
                std::vector<bf16> destination, To&& destination_layers) {
  using Config = cuda::MoveConfig<P, P, small>;
  std::vector<bf16> expected = destination;
  expect(pairs, source_layers(source.data()), destination_layers(expected.data()));
  const auto from = in_pieces<P>(blocks_as_rows(source_layers(source.data())));
  const auto to = in_pieces<P>(blocks_as_rows(destination_layers(destination.data())));
  cuda::SwapList list;
  list.size = static_cast<int>(pairs.size());
  std::copy(pairs.begin(), pairs.end(), list.pairs);
  run_grid({static_cast<unsigned>(small.max_ctas)}, Config::threads,
           [&] { cuda::block_swap_kernel<Config>(list, from, to, cuda::make_swap_shape(from, Config::tile_pieces)); });
  CHECK(std::memcmp(destination.data(), expected.data(), expected.size() * sizeof(bf16)) == 0);
}

template <class P>
void check_swap(const KvLayout& device, std::int64_t num_host_blocks) {
  const std::vector<BlockPair> pairs{{BlockId{2}, BlockId{3}}, {BlockId{3}, BlockId{0}}, {BlockId{0}, BlockId{1}}};
  KvLayout host = device;
  host.num_blocks = num_host_blocks;
  check_swap<P>(
      pairs, random_pool(device, 1), [&](bf16* data) { return plain_layers(data, device); }, random_pool(host, 2),
      [&](bf16* data) { return plain_layers(data, host); });
}

}  // namespace

TEST_CASE("the swap kernel moves every block of every pair in every layer, and not a byte elsewhere") {
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    KvLayout layout{.num_layers = 3, .num_blocks = 5, .kv_heads = 3, .block_size = 6, .head_dim = 40, .order = order};
    SUBCASE("in pieces of 16 bytes, tiles that end inside a layer") { check_swap<Piece<16>>(layout, 9); }
    SUBCASE("in pieces of 16 bytes that heads and slots share") {
      layout.head_dim = 4;  // rows of 8 bytes; a block has 144
      check_swap<Piece<16>>(layout, 4);
    }
    SUBCASE("element by element, where K and V have odd and unequal rows") {
      layout.head_dim = 7;
      layout.head_dim_v = 11;
      check_swap<Piece<2>>(layout, 4);
    }
    SUBCASE("one layer of one slot is less than a tile") {
      check_swap<Piece<16>>({.num_blocks = 4, .kv_heads = 1, .block_size = 1, .head_dim = 8}, 4);
    }
  }
}

TEST_CASE("pools that put their layers in another order are swapped with each other") {
  const KvLayout layout{.num_layers = 3, .num_blocks = 4, .kv_heads = 2, .block_size = 4, .head_dim = 8};
  const auto plain = [&](bf16* data) { return plain_layers(data, layout); };
  const auto side_by_side = [&](bf16* data) {  // [num_blocks][num_layers][K, V]
    Layers layers = plain_layers(data, layout);
    const std::int64_t half = layout.key_elements() / layout.num_blocks;
    layers.first.k.strides[0] = layers.first.v.strides[0] = 2 * half * layout.num_layers;
    layers.first.v.data = layers.first.k.data + half;
    layers.layer_stride = 2 * half;
    return layers;
  };
  const std::vector<BlockPair> pairs{{BlockId{3}, BlockId{1}}, {BlockId{1}, BlockId{2}}};
  check_swap<Piece<16>>(pairs, random_pool(layout, 1), plain, random_pool(layout, 2), side_by_side);
  check_swap<Piece<16>>(pairs, random_pool(layout, 1), side_by_side, random_pool(layout, 2), plain);
}

TEST_CASE("a launch without pairs moves nothing") {
  const KvLayout layout{.num_blocks = 2, .kv_heads = 1, .block_size = 4, .head_dim = 8};
  const auto plain = [&](bf16* data) { return plain_layers(data, layout); };
  check_swap<Piece<16>>({}, random_pool(layout, 1), plain, random_pool(layout, 2), plain);
}

TEST_CASE("the pieces of a block in all layers are counted, and refused where 31 bits do not hold them") {
  const auto shape = [](std::int64_t block_pieces, int num_layers) {
    const View<Piece<16>, 4, Space::device> blocks{.extents = {9, 1, 1, block_pieces}};
    return cuda::make_swap_shape(
        KvLayers<Piece<16>, Space::device>{.first = {.k = blocks, .v = blocks}, .num_layers = num_layers}, 2048);
  };
  CHECK(shape(2048, 32).num_pieces == 2 * 2048 * 32);
  CHECK(shape(2048, 32).num_tiles == 64);
  CHECK(shape(1, 1).num_tiles == 1);
  CHECK(shape(1'000'000'000, 1).num_pieces == 2'000'000'000);
  CHECK_THROWS_AS(shape(1'000'000'000, 2), InvalidArgument);
  CHECK_THROWS_AS(shape(std::int64_t{1} << 40, 1), InvalidArgument);
}
