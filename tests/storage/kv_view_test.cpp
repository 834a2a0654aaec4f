// KvView over memory that a user owns: any strides, several layers interleaved, const views, offsets beyond 2^32.
#include "pagedkv/storage/kv_view.hpp"

#include <doctest/doctest.h>

#include <type_traits>
#include <vector>

#include "pagedkv/core/error.hpp"

using namespace pagedkv;

static_assert(std::is_trivially_copyable_v<KvView<float, Space::device>> &&
              std::is_trivially_copyable_v<KvLayers<float>>);
static_assert(std::is_convertible_v<KvView<float>, KvView<const float>>);
static_assert(!std::is_convertible_v<KvView<const float>, KvView<float>>);
static_assert(!std::is_convertible_v<KvView<float, Space::device>, KvView<float, Space::host>>);

namespace {

// [num_blocks = 2][num_layers = 3][slots = 4][heads = 2][K 5, V 3]: one block of all layers is one run, for transfers.
KvLayers<float> interleaved(float* data) {
  constexpr std::int64_t slot = 2 * (5 + 3), layer = 4 * slot, block = 3 * layer;
  return {.first = {.k = {.data = data, .extents = {2, 2, 4, 5}, .strides = {block, 8, slot, 1}},
                    .v = {.data = data + 5, .extents = {2, 2, 4, 3}, .strides = {block, 8, slot, 1}}},
          .num_layers = 3,
          .layer_stride = layer};
}

}  // namespace

TEST_CASE("interleaved layers reach every element once") {
  std::vector<float> memory(2 * 3 * 4 * 2 * 8, 0.f);
  const auto layers = interleaved(memory.data());
  for (int i = 0; i < layers.num_layers; ++i) {
    const KvView<float> layer = layers.layer(i);
    layer.validate();
    for (const auto& view : {layer.k, layer.v}) {
      for (int b = 0; b < 2; ++b) {
        for (int h = 0; h < 2; ++h) {
          for (int t = 0; t < 4; ++t) {
            for (int d = 0; d < view.extents[3]; ++d) view(b, h, t, d) += 1.f;
          }
        }
      }
    }
  }
  CHECK(memory == std::vector<float>(memory.size(), 1.f));
}

TEST_CASE("a view knows its sizes") {
  std::vector<float> memory(400);
  const KvView<const float> view = interleaved(memory.data()).layer(2);
  CHECK(view.num_blocks() == 2);
  CHECK(view.kv_heads() == 2);
  CHECK(view.block_size() == 4);
  CHECK(view.head_dim() == 5);
  CHECK(view.head_dim_v() == 3);
}

TEST_CASE("offsets are 64-bit: a block may lie more than 2^32 elements behind the first") {
  std::vector<char> memory(1);
  View<char, 4> far{.data = memory.data(), .extents = {3, 1, 1, 1}, .strides = {(std::int64_t{1} << 33) + 1, 1, 1, 1}};
  // The address is computed, not read.
  const auto first = reinterpret_cast<std::uintptr_t>(far.data),
             last = reinterpret_cast<std::uintptr_t>(far.at(2, 0, 0, 0));
  CHECK(last - first == (std::uintptr_t{1} << 34) + 2);
}

TEST_CASE("a view of fewer than one head, block or element is refused by name") {
  std::vector<float> memory(400);
  const auto check_refused = [&](const char* text, auto&& spoil) {
    KvView<float> view = interleaved(memory.data()).layer(0);
    spoil(view);
    CHECK_THROWS_WITH_AS(view.validate(), doctest::Contains(text), InvalidArgument);
  };
  check_refused("kv: num_blocks at least 1 expected, 0 given", [](auto& view) { view.k.extents[0] = 0; });
  check_refused("kv: kv_heads at least 1 expected, 0 given", [](auto& view) { view.k.extents[1] = 0; });
  check_refused("kv: head_dim at least 1 expected, 0 given", [](auto& view) { view.k.extents[3] = 0; });
  check_refused("kv.v: head_dim_v at least 1 expected, 0 given", [](auto& view) { view.v.extents[3] = 0; });
  check_refused("kv.v: stride of head_dim 1 expected, 2 given", [](auto& view) { view.v.strides[3] = 2; });
}
