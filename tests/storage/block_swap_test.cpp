// What may be swapped and what is refused; blocks seen as rows are the same bytes.
#include "pagedkv/storage/block_swap.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/storage/kv_layout.hpp"

using namespace pagedkv;

namespace {

constexpr KvLayout device{.num_layers = 3, .num_blocks = 9, .kv_heads = 2, .block_size = 4, .head_dim = 6};
constexpr KvLayout host{.num_layers = 3, .num_blocks = 20, .kv_heads = 2, .block_size = 4, .head_dim = 6};
const std::vector<BlockPair> pairs{{BlockId{2}, BlockId{7}}, {BlockId{8}, BlockId{2}}, {BlockId{0}, BlockId{19}}};

std::vector<bf16> pool(const KvLayout& layout) {
  return std::vector<bf16>(static_cast<std::size_t>(layout.num_elements()));
}

}  // namespace

TEST_CASE("the row of a block holds each of its elements once, whatever the order of heads and slots") {
  for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd}) {
    KvLayout layout = device;
    layout.order = order;
    layout.head_dim_v = 5;
    std::vector<bf16> bytes = pool(layout);
    const KvLayers<bf16> layers = layers_view(bytes.data(), layout), rows = blocks_as_rows(layers);
    for (int i = 0; i < layout.num_layers; ++i) {
      for (const bool is_key : {true, false}) {
        const auto blocks = is_key ? layers.layer(i).k : layers.layer(i).v;
        const auto row = is_key ? rows.layer(i).k : rows.layer(i).v;
        REQUIRE(row.extents[3] == 2 * 4 * blocks.extents[3]);
        for (std::int64_t block = 0; block < layout.num_blocks; ++block) {
          std::vector<int> seen(static_cast<std::size_t>(row.extents[3]));
          for (std::int64_t head = 0; head < 2; ++head)
            for (std::int64_t slot = 0; slot < 4; ++slot)
              for (std::int64_t d = 0; d < blocks.extents[3]; ++d)
                ++seen.at(static_cast<std::size_t>(blocks.at(block, head, slot, d) - row.at(block, 0, 0, 0)));
          CHECK(seen == std::vector<int>(seen.size(), 1));
        }
      }
    }
  }
}

TEST_CASE("pools that differ and ids that are no block's are refused by name") {
  std::vector<bf16> source = pool(device), destination = pool(host);
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
  CHECK_THROWS_WITH_AS((validate_swap<bf16, bf16>({}, gaps, gaps)),
                       doctest::Contains("K of a block in both pools without gaps expected"), InvalidArgument);
}
