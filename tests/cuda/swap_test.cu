// swap_blocks between device memory and pinned host memory: out and in again bit for bit, and what is refused.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cuda_graph.cuh"
#include "pagedkv/core/error.hpp"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/swap.cuh"
#include "support/two_pools.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

/// Copies by plain loops, layer by layer.
template <class T>
void expect(const std::vector<BlockPair>& pairs, const KvLayers<T>& source, const KvLayers<T>& destination) {
  for (int i = 0; i < source.num_layers; ++i)
    for (const BlockPair& pair : pairs)
      for (const bool is_key : {true, false}) {
        const auto from = is_key ? source.layer(i).k : source.layer(i).v,
                   to = is_key ? destination.layer(i).k : destination.layer(i).v;
        for (std::int64_t head = 0; head < from.extents[1]; ++head)
          for (std::int64_t slot = 0; slot < from.extents[2]; ++slot)
            for (std::int64_t d = 0; d < from.extents[3]; ++d)
              to(to_index(pair.destination), head, slot, d) = from(to_index(pair.source), head, slot, d);
      }
}

template <class T>
void out_and_in(const KvLayout& device_layout, std::int64_t num_host_blocks) {
  KvLayout host_layout = device_layout;
  host_layout.num_blocks = num_host_blocks;
  TwoPools<T> device(device_layout);
  cuda::PinnedKvPool<T> host(host_layout);
  pagedkv::KvPool<T> expected(host_layout);
  const Stream on;
  const std::vector<BlockPair> out{{BlockId{3}, BlockId{0}},
                                   {BlockId{4}, BlockId{1}},
                                   {BlockId{5}, BlockId{2}},
                                   {BlockId{0}, BlockId{6}},
                                   {BlockId{9}, BlockId{5}}};
  const std::vector<BlockPair> in{{BlockId{6}, BlockId{8}}, {BlockId{0}, BlockId{1}}, {BlockId{1}, BlockId{2}}};
  cuda::swap_blocks<T>(out, device.device.layers(), host.layers(), on);
  cuda::swap_blocks<T>(in, host.layers(), device.device.layers(), on);
  expect<T>(out, device.host.layers(), expected.layers());
  expect<T>(in, expected.layers(), device.host.layers());
  on.wait();
  CHECK(std::memcmp(host.layers().first.k.data, expected.layers().first.k.data, host.size_bytes()) == 0);
  CHECK(device.equal());
}

}  // namespace

TEST_CASE("blocks swapped out and in again are the same bits, all layers, and no other block changes") {
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    KvLayout layout{.num_layers = 5, .num_blocks = 11, .kv_heads = 2, .block_size = 16, .head_dim = 64, .order = order};
    out_and_in<bf16>(layout, 7);
    layout.head_dim_v = 33;
    layout.block_size = 3;
    out_and_in<float>(layout, 40);
    layout.num_layers = 1;
    out_and_in<std::int8_t>(layout, 11);
  }
}

TEST_CASE("blocks move inside device memory, from one pool to another") {
  const KvLayout layout{.num_layers = 2, .num_blocks = 4, .kv_heads = 1, .block_size = 4, .head_dim = 8};
  TwoPools<float> a(layout), b(layout);
  const std::vector<BlockPair> pairs{{BlockId{0}, BlockId{3}}, {BlockId{2}, BlockId{1}}};
  cuda::swap_blocks<float>(pairs, a.device.layers(), b.device.layers(), nullptr);
  expect<float>(pairs, a.host.layers(), b.host.layers());
  CHECK(b.equal());
}

TEST_CASE("more pairs than one launch takes all arrive") {
  const KvLayout layout{.num_layers = 2, .num_blocks = 600, .kv_heads = 1, .block_size = 4, .head_dim = 8};
  TwoPools<float> device(layout);
  cuda::PinnedKvPool<float> host(layout);
  fill_random(host.layers().first.k.data, host.size_bytes(), 3);
  std::vector<BlockPair> pairs;
  for (int i = 0; i < 599; ++i) pairs.push_back({BlockId{i}, BlockId{599 - i}});
  const Stream on;
  cuda::swap_blocks<float>(pairs, host.layers(), device.device.layers(), on);
  expect<float>(pairs, host.layers(), device.host.layers());
  on.wait();
  CHECK(device.equal());
}

TEST_CASE("a captured swap copies what the blocks hold when it is replayed") {
  const KvLayout layout{.num_layers = 3, .num_blocks = 4, .kv_heads = 2, .block_size = 4, .head_dim = 8};
  TwoPools<float> device(layout);
  cuda::PinnedKvPool<float> host(layout);
  const std::vector<BlockPair> pairs{{BlockId{1}, BlockId{0}}, {BlockId{3}, BlockId{2}}};
  const Stream on;
  const Graph graph(on, [&] { cuda::swap_blocks<float>(pairs, host.layers(), device.device.layers(), on); });
  for (const std::uint64_t seed : {5, 6}) {
    fill_random(host.layers().first.k.data, host.size_bytes(), seed);
    graph.replay(on);
    on.wait();
    expect<float>(pairs, host.layers(), device.host.layers());
    CHECK(device.equal());
  }
}

TEST_CASE("a swap that names no block, or memory that is not pinned, is refused before anything moves") {
  const KvLayout layout{.num_layers = 2, .num_blocks = 4, .kv_heads = 1, .block_size = 4, .head_dim = 8};
  TwoPools<float> pools(layout);
  cuda::PinnedKvPool<float> pinned(layout);
  const auto refuses = [&](const char* text, const std::vector<BlockPair>& pairs, const KvLayers<float>& host) {
    CHECK_THROWS_WITH_AS(cuda::swap_blocks<float>(pairs, host, pools.device.layers(), nullptr), doctest::Contains(text),
                         InvalidArgument);
    CHECK(pools.equal());
  };
  const std::vector<BlockPair> good{{BlockId{0}, BlockId{1}}};
  refuses("source block below 4 expected, 4 given", {{BlockId{0}, BlockId{1}}, {BlockId{4}, BlockId{2}}},
          pinned.layers());
  refuses("destination block below 4 expected, -1 given", {good[0], {BlockId{2}, BlockId::none}}, pinned.layers());
  refuses("host memory pinned expected, pageable given", good, pools.host.layers());
  cuda::swap_blocks<float>(std::vector<BlockPair>{}, pools.host.layers(), pools.device.layers(), nullptr);
}
