// copy_blocks, store_kv, gather_kv where it is tight: far blocks, views with gaps, many layers, launches that overlap.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/cpu/step.hpp"
#include "pagedkv/cuda/gather.cuh"
#include "pagedkv/cuda/step.cuh"
#include "support/two_pools.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv_test;

cuda::StepView copies_view(const cuda::DeviceArray<BlockCopy>& copies) {
  const auto size = static_cast<std::int64_t>(copies.size());
  return {.copies = dense_view<Space::device>(static_cast<const BlockCopy*>(copies.data()), {size}), .slots = {}};
}
cuda::StepView slots_view(const cuda::DeviceArray<Slot>& slots) {
  const auto size = static_cast<std::int64_t>(slots.size());
  return {.copies = {}, .slots = dense_view<Space::device>(static_cast<const Slot*>(slots.data()), {size})};
}

/// Bytes of device memory as elements on the host.
std::vector<std::uint16_t> bits_at(const bf16* data, std::size_t size) {
  std::vector<std::uint16_t> bits(size);
  cuda::check(cudaDeviceSynchronize(), "bits");
  cuda::check(cudaMemcpy(bits.data(), data, size * sizeof(bf16), cudaMemcpyDeviceToHost), "bits");
  return bits;
}

}  // namespace

TEST_CASE("hundreds of copies of all row counts in many layers leave what plain loops leave") {
  constexpr int num_copies = 700, num_layers = 9, block_size = 6;  // more tiles than a grid has CTAs for each layer
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    TwoPools<bf16> pools({.num_layers = num_layers,
                          .num_blocks = 2 * num_copies,
                          .kv_heads = 3,
                          .block_size = block_size,
                          .head_dim = 24,
                          .head_dim_v = 40,
                          .order = order});
    std::vector<BlockCopy> copies;
    for (int i = 0; i < num_copies; ++i)
      copies.push_back({BlockId{i}, BlockId{2 * num_copies - 1 - i}, i % (block_size + 1)});
    for (int i = 0; i < num_layers; ++i) {
      const auto layer = pools.host.layer(i);
      for (const BlockCopy& copy : copies) {
        for (const auto& blocks : {layer.k, layer.v})
          for (int head = 0; head < 3; ++head)
            for (int slot = 0; slot < copy.num_rows; ++slot)
              std::copy_n(blocks.at(to_index(copy.source), head, slot, 0), blocks.extents[3],
                          blocks.at(to_index(copy.destination), head, slot, 0));
      }
    }
    const auto list = to_device(copies);
    cuda::copy_blocks(copies_view(list), pools.device, nullptr);
    CHECK(pools.equal());
  }
}

TEST_CASE("views with gaps between rows, heads, blocks and layers are copied and stored without touching the gaps") {
  // [num_blocks][num_layers][kv_heads][block_size][K, V, gap], rows of 16 elements: all of it by strides.
  constexpr int num_blocks = 5, num_layers = 2, heads = 3, slots = 4, dim = 16, gap = 8, row = 2 * dim + gap;
  constexpr std::int64_t layer_stride = heads * slots * row, block_stride = num_layers * layer_stride;
  const auto layers = [&]<Space S>(bf16* data) {
    View<bf16, 4, S> k{
        .data = data, .extents = {num_blocks, heads, slots, dim}, .strides = {block_stride, slots * row, row, 1}};
    View<bf16, 4, S> v = k;
    v.data += dim;
    return KvLayers<bf16, S>{.first = {.k = k, .v = v}, .num_layers = num_layers, .layer_stride = layer_stride};
  };
  std::vector<bf16> host(num_blocks * block_stride);
  fill_random(host.data(), host.size() * sizeof(bf16), 5);
  const auto device = to_device(host);
  const auto on_host = layers.operator()<Space::host>(host.data());
  const auto on_device = layers.operator()<Space::device>(device.data());

  BlockAllocator blocks({.num_blocks = num_blocks, .block_size = slots});
  Sequence parent(blocks);
  StepPlan step;
  cuda::Workspace workspace({.max_seqs = 1, .max_blocks_per_seq = 1, .max_tokens = 8, .max_copies = 2});
  const auto execute = [&](std::uint64_t seed) {
    const auto view = workspace.upload(step, nullptr);
    cpu::copy_blocks(step, on_host);
    cuda::copy_blocks(view, on_device, nullptr);
    for (int i = 0; i < num_layers; ++i) {
      const Rows<bf16> k(step.num_rows(), heads, dim, seed), v(step.num_rows(), heads, dim, seed + 1);
      cpu::store_kv(step, on_host.layer(i), k.on_host(), v.on_host());
      cuda::store_kv(view, on_device.layer(i), k.on_device(), v.on_device(), nullptr);
    }
    step.commit();
    const auto bits = bits_at(device.data(), host.size());
    CHECK(std::equal(host.begin(), host.end(), bits.begin(), [](bf16 x, std::uint16_t y) { return x.bits == y; }));
  };
  REQUIRE(parent.append(7, step));
  execute(10);
  Sequence child = parent.fork();
  REQUIRE(child.append(1, step));
  execute(20);
}

TEST_CASE("kernels that start before the one in front has ended still see all it wrote") {
  const KvLayout layout{.num_layers = 1, .num_blocks = 600, .kv_heads = 4, .block_size = 4, .head_dim = 64};
  cuda::KvPool<bf16> pool(layout);
  constexpr int num_rows = 1024, num_rounds = 50;
  std::vector<Slot> first(num_rows);
  std::iota(first.begin(), first.end(), 0);
  std::vector<BlockCopy> copies;
  for (int i = 0; i < 256; ++i) copies.push_back({BlockId{i}, BlockId{300 + i}, 4});
  std::vector<std::int32_t> ids(256);
  std::iota(ids.begin(), ids.end(), 300);
  const std::vector<std::int32_t> lengths{num_rows};
  const auto slots = to_device(first);
  const auto list = to_device(copies);
  const auto table = to_device(ids), kv_len = to_device(lengths);
  const Rows<bf16> even(num_rows, 4, 64, 1), odd(num_rows, 4, 64, 2);
  const cuda::DeviceArray<bf16> k(even.host.size()), v(even.host.size());
  const auto out = [&](const cuda::DeviceArray<bf16>& rows) {
    return dense_view<Space::device>(rows.data(), {num_rows, 4, 64});
  };
  const TablesView<Space::device> tables{
      .block_ids = dense_view<Space::device>(static_cast<const std::int32_t*>(table.data()), {1, 256}),
      .kv_len = dense_view<Space::device>(static_cast<const std::int32_t*>(kv_len.data()), {1}),
      .query_begin = {}};
  for (int round = 0; round < num_rounds; ++round) {
    const auto& rows = round % 2 == 0 ? even : odd;
    constexpr auto ahead = cuda::Launch::overlap_previous;
    cuda::store_kv(slots_view(slots), pool.layer(0), rows.on_device(), rows.on_device(), nullptr, ahead);
    cuda::copy_blocks(copies_view(list), pool, nullptr, ahead);
    cuda::gather_kv(tables, {}, pool.layer(0), out(k), out(v), nullptr, ahead);
  }
  const auto as_given = [&](const cuda::DeviceArray<bf16>& rows) {
    const auto bits = bits_at(rows.data(), rows.size());
    return std::equal(odd.host.begin(), odd.host.end(), bits.begin(),
                      [](bf16 x, std::uint16_t y) { return x.bits == y; });
  };
  CHECK(as_given(k));
  CHECK(as_given(v));
}

TEST_CASE("blocks that lie more than 2^32 elements into the pool are copied, stored and gathered") {
  // Two blocks of 64 KiB, the second behind 2^32 elements; K in the first half of a block, V in the second.
  constexpr std::int64_t half = 4 * 16 * 64, stride = (std::int64_t{1} << 32) + 2 * half;
  std::size_t free_bytes = 0, total_bytes = 0;
  cuda::check(cudaMemGetInfo(&free_bytes, &total_bytes), "memory");
  if (free_bytes < static_cast<std::size_t>(stride + 2 * half) * sizeof(bf16) + (std::size_t{1} << 28)) {
    MESSAGE("skipped: 9 GB of device memory are not free");
    return;
  }
  const cuda::DeviceArray<bf16> memory(static_cast<std::size_t>(stride + 2 * half));
  View<bf16, 4, Space::device> blocks = dense_view<Space::device>(memory.data(), {2, 4, 16, 64});
  blocks.strides[0] = stride;
  KvView<bf16, Space::device> layer{.k = blocks, .v = blocks};
  layer.v.data += half;
  const Rows<bf16> k(16, 4, 64, 1), v(16, 4, 64, 2);

  std::vector<Slot> all(16);
  std::iota(all.begin(), all.end(), Slot{16});  // the far block
  const auto slots = to_device(all);
  const auto copies = to_device(std::vector<BlockCopy>{{BlockId{1}, BlockId{0}, 16}});
  const auto ids = to_device(std::vector<std::int32_t>{1}), kv_len = to_device(std::vector<std::int32_t>{16});
  cuda::store_kv(slots_view(slots), layer, k.on_device(), v.on_device(), nullptr);
  cuda::copy_blocks<bf16>(copies_view(copies), {.first = layer, .num_layers = 1}, nullptr);
  CHECK(bits_at(layer.k.data + stride, 2 * half) == bits_at(layer.k.data, 2 * half));
  CHECK(bits_at(layer.v.at(1, 3, 15, 0), 64) == bits_at(v.on_device().at(15, 3, 0), 64));

  const cuda::DeviceArray<bf16> k_out(k.host.size()), v_out(v.host.size());
  const TablesView<Space::device> tables{
      .block_ids = dense_view<Space::device>(static_cast<const std::int32_t*>(ids.data()), {1, 1}),
      .kv_len = dense_view<Space::device>(static_cast<const std::int32_t*>(kv_len.data()), {1}),
      .query_begin = {}};
  cuda::gather_kv(tables, {}, layer, dense_view<Space::device>(k_out.data(), {16, 4, 64}),
                  dense_view<Space::device>(v_out.data(), {16, 4, 64}), nullptr);
  CHECK(bits_at(k_out.data(), k_out.size()) == bits_at(k.on_device().data, k.host.size()));
  CHECK(bits_at(v_out.data(), v_out.size()) == bits_at(v.on_device().data, v.host.size()));
}
