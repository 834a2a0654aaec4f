// Swaps as plain copies between host pools: every block of every pair, in the fewest copies, and what is refused.
#include "pagedkv/storage/block_swap.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "support/random.hpp"

using namespace pagedkv;

namespace {

constexpr std::size_t any_pitch = std::numeric_limits<std::int32_t>::max();

std::vector<bf16> random_pool(const KvLayout& layout, std::uint64_t seed) {
  pagedkv_test::Random random(seed);
  std::vector<bf16> pool(static_cast<std::size_t>(layout.num_elements()));
  for (bf16& x : pool) x.bits = static_cast<std::uint16_t>(random.next());
  return pool;
}

void execute(const StridedCopy& copy) {
  for (std::size_t row = 0; row < copy.height; ++row) {
    std::memcpy(static_cast<std::byte*>(copy.destination) + row * copy.destination_pitch,
                static_cast<const std::byte*>(copy.source) + row * copy.source_pitch, copy.width_bytes);
  }
}

/// Executes the pairs' copies and checks every byte of the destination; returns how many copies there were.
int swap(const std::vector<BlockPair>& pairs, const KvLayers<bf16>& source, const KvLayers<bf16>& destination,
         std::vector<bf16>& bytes, std::size_t max_pitch = any_pitch) {
  std::vector<bf16> expected = bytes;
  const std::ptrdiff_t begin = destination.first.k.data - bytes.data();
  KvLayers<bf16> to = destination;
  to.first.v.data = expected.data() + begin + (destination.first.v.data - destination.first.k.data);
  to.first.k.data = expected.data() + begin;
  for (int i = 0; i < source.num_layers; ++i) {
    for (const BlockPair& pair : pairs) {
      const auto expect = [&](const View<bf16, 4>& from, const View<bf16, 4>& into) {
        for (int head = 0; head < from.extents[1]; ++head)
          for (int slot = 0; slot < from.extents[2]; ++slot)
            for (int d = 0; d < from.extents[3]; ++d)
              into(to_index(pair.destination), head, slot, d) = from(to_index(pair.source), head, slot, d);
      };
      expect(source.layer(i).k, to.layer(i).k);
      expect(source.layer(i).v, to.layer(i).v);
    }
  }
  int num_copies = 0;
  validate_swap<bf16, bf16>(pairs, source, destination);
  for_each_copy<bf16, bf16>(pairs, source, destination, max_pitch, [&](const StridedCopy& copy) {
    execute(copy);
    ++num_copies;
    CHECK((copy.height == 1 || (copy.source_pitch <= max_pitch && copy.destination_pitch <= max_pitch)));
  });
  CHECK(std::memcmp(bytes.data(), expected.data(), bytes.size() * sizeof(bf16)) == 0);
  return num_copies;
}

constexpr KvLayout device{.num_layers = 3, .num_blocks = 9, .kv_heads = 2, .block_size = 4, .head_dim = 6};
constexpr KvLayout host{.num_layers = 3, .num_blocks = 20, .kv_heads = 2, .block_size = 4, .head_dim = 6};
const std::vector<BlockPair> pairs{{BlockId{2}, BlockId{7}}, {BlockId{3}, BlockId{8}}, {BlockId{4}, BlockId{9}},
                                   {BlockId{5}, BlockId{1}}, {BlockId{8}, BlockId{2}}, {BlockId{0}, BlockId{19}}};

}  // namespace

TEST_CASE("each run of pairs is one copy of all layers, K and V") {
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    KvLayout from = device, to = host;
    from.order = to.order = order;
    std::vector<bf16> source = random_pool(from, 1), destination = random_pool(to, 2);
    CHECK(swap(pairs, layers_view(source.data(), from), layers_view(destination.data(), to), destination) == 4);
    CHECK(swap({}, layers_view(source.data(), from), layers_view(destination.data(), to), destination) == 0);
  }
}

TEST_CASE("where rows of K and V are unequal, each run is a copy of K and one of V") {
  KvLayout from = device, to = host;
  from.head_dim_v = to.head_dim_v = 3;
  std::vector<bf16> source = random_pool(from, 1), destination = random_pool(to, 2);
  CHECK(swap(pairs, layers_view(source.data(), from), layers_view(destination.data(), to), destination) == 8);
}

TEST_CASE("pitches that a copy cannot take cost a copy for each layer's K and V") {
  std::vector<bf16> source = random_pool(device, 1), destination = random_pool(host, 2);
  CHECK(swap(pairs, layers_view(source.data(), device), layers_view(destination.data(), host), destination, 1000) ==
        24);
}

TEST_CASE("pools whose blocks hold K and V side by side, layer by layer, are swapped block by block") {
  const auto side_by_side = [](std::vector<bf16>& bytes, const KvLayout& layout) {  // [num_blocks][num_layers][K, V]
    KvLayers<bf16> layers = layers_view(bytes.data(), layout);
    const std::int64_t half = layout.key_elements() / layout.num_blocks;
    layers.first.k.strides[0] = layers.first.v.strides[0] = 2 * half * layout.num_layers;
    layers.first.v.data = layers.first.k.data + half;
    layers.layer_stride = 2 * half;
    return layers;
  };
  std::vector<bf16> source = random_pool(device, 1), destination = random_pool(host, 2);
  CHECK(swap(pairs, side_by_side(source, device), layers_view(destination.data(), host), destination) == 6);
  CHECK(swap(pairs, side_by_side(source, device), side_by_side(destination, host), destination) == 6);
}

TEST_CASE("one layer is swapped like many") {
  KvLayout from = device, to = host;
  from.num_layers = to.num_layers = 1;
  std::vector<bf16> source = random_pool(from, 1), destination = random_pool(to, 2);
  CHECK(swap(pairs, layers_view(source.data(), from), layers_view(destination.data(), to), destination) == 4);
}

TEST_CASE("pools that differ and ids that are no block's are refused by name") {
  std::vector<bf16> source = random_pool(device, 1), destination = random_pool(host, 2);
  const auto from = layers_view(source.data(), device);
  const auto refusal = [&](const KvLayout& layout, const std::vector<BlockPair>& list) -> std::string {
    try {
      validate_swap<bf16, bf16>(list, from, layers_view(destination.data(), layout));
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "";
  };
  const auto with = [](auto&& change) {
    KvLayout layout = host;
    change(layout);
    return layout;
  };
  CHECK(refusal(host, pairs) == "");
  CHECK(refusal(with([](KvLayout& l) { l.num_layers = 2; }), pairs).find("layers of both pools 3 expected, 2 given") ==
        13);
  CHECK(refusal(with([](KvLayout& l) { l.order = KvOrder::nhd; }), pairs).find("K of a block in both pools") == 13);
  CHECK(refusal(with([](KvLayout& l) { l.head_dim_v = 5; }), pairs).find("V of a block in both pools") == 13);
  CHECK(refusal(with([](KvLayout& l) { l.block_size = 2; }), pairs) != "");
  CHECK(refusal(host, {{BlockId{9}, BlockId{0}}}).find("source block below 9 expected, 9 given") == 13);
  CHECK(refusal(host, {{BlockId{0}, BlockId::none}}).find("destination block below 20 expected, -1 given") == 13);
  KvLayers<bf16> gaps = from;
  gaps.first.k.strides[2] *= 2;
  CHECK_THROWS_AS((validate_swap<bf16, bf16>(pairs, gaps, gaps)), InvalidArgument);
}
