// TMA on the GPU: boxes of a paged pool, lifted by encoded maps, lie in shared memory where BoxedTile says.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/device.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/ptx/mbarrier.cuh"
#include "pagedkv/cuda/ptx/tma.cuh"
#include "pagedkv/cuda/tensor_map.cuh"
#include "pagedkv/cuda/tile/swizzle.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "support/boxed_pools.hpp"
#include "support/device_problem.cuh"

namespace {

using namespace pagedkv;
using namespace pagedkv::cuda;
using namespace pagedkv_test;

/// One warp, one stage: pairs of boxes land in a tile, which is copied out row by row. `stuck` counts barriers that never
/// open.
template <int Dim, int BoxRows>
__global__ void lift_boxes_kernel(const __grid_constant__ ptx::TensorMap map, const Piece* pieces, int num_pieces,
                                  std::uint16_t* out, int* stuck) {
#if __CUDA_ARCH__ >= 900
  using Tile = BoxedTile<Dim, BoxRows>;
  constexpr int tile_rows = boxes_per_tile * BoxRows;
  constexpr int max_polls = 1 << 20;  // a barrier that has not opened by then never will
  __shared__ alignas(1024) std::uint16_t tile[boxes_per_tile * Tile::box_elements];
  __shared__ ptx::Mbarrier landed;
  const int lane = static_cast<int>(threadIdx.x);
  if (lane == 0) {
    ptx::prefetch_tensormap(map);
    ptx::mbarrier_init(landed, 1);
    ptx::fence_mbarrier_init();
  }
  for (int i = lane; i < boxes_per_tile * Tile::box_elements; i += 32) tile[i] = 0xffff;
  ptx::fence_proxy_async();  // what was just written must not overtake the first boxes
  __syncwarp();

  unsigned parity = 0;
  for (int first = 0; first < num_pieces; first += boxes_per_tile) {
    if (lane == 0) {
      ptx::mbarrier_arrive_expect_tx(landed, sizeof(tile));
      for (int i = 0; i < boxes_per_tile; ++i) {
        const Piece piece = pieces[first + i];
        ptx::cp_async_bulk_tensor_5d(&tile[i * Tile::box_elements], map, {0, piece.slot, 0, piece.head, piece.block},
                                     landed, ptx::l2_evict_first());
      }
    }
    int polls = 0;
    while (!ptx::mbarrier_try_wait(landed, parity)) {
      if (++polls < max_polls) continue;
      if (lane == 0) ++*stuck;
      return;
    }
    parity ^= 1;
    for (int i = lane; i < tile_rows * Dim; i += 32)
      out[static_cast<std::int64_t>(first) * BoxRows * Dim + i] = tile[Tile::offset(i / Dim, i % Dim)];
    __syncwarp();  // all have read the tile that lane 0 refills
  }
#endif
}

/// The elements of lifted pieces, [piece, row, column], that differ from the view's; all, where a barrier got stuck.
template <int Dim, int BoxRows, class T>
int num_wrong(const View<T, 4, Space::device>& on_device, const View<const T, 4>& view,
              const std::vector<Piece>& pieces) {
  REQUIRE(boxed_support(on_device, BoxRows));
  const ptx::TensorMap map = tensor_map(boxed(on_device, BoxRows));
  const DeviceArray<Piece> device_pieces = to_device(pieces);
  const DeviceArray<std::uint16_t> out(pieces.size() * BoxRows * Dim);
  const DeviceArray<int> stuck(1);
  lift_boxes_kernel<Dim, BoxRows>
      <<<1, 32>>>(map, device_pieces.data(), static_cast<int>(pieces.size()), out.data(), stuck.data());
  check(cudaGetLastError(), "lift_boxes");
  std::vector<std::uint16_t> lifted;
  std::vector<int> num_stuck;
  to_host(lifted, out);
  to_host(num_stuck, stuck);
  CHECK(num_stuck[0] == 0);
  int wrong = 0;
  for (std::size_t i = 0; i < lifted.size(); ++i) {
    const int row = static_cast<int>(i / Dim % BoxRows), column = static_cast<int>(i % Dim);
    wrong += lifted[i] != expected_bits(view, pieces[i / Dim / BoxRows], row, column);
  }
  return wrong;
}

template <int Dim, int BoxRows, class T>
void check_pool(KvOrder order, int block_size) {
  const KvLayout layout{.num_blocks = 7, .kv_heads = 3, .block_size = block_size, .head_dim = Dim, .order = order};
  const auto elements = numbered_elements<T>(layout);
  const DeviceArray<T> pool = to_device(elements);
  const int wrong =
      num_wrong<Dim, BoxRows, T>(block_view<Space::device>(pool.data(), layout, Dim),
                                 block_view(elements.data(), layout, Dim), pieces_of(layout, BoxRows, 64));
  CHECK(wrong == 0);
}

template <int Dim, int BoxRows, class T = bf16>
void check_block_sizes() {
  CAPTURE(Dim);
  CAPTURE(BoxRows);
  for (const int block_size : {8, 16, 24, 32, 64, 128}) {
    if (block_size % BoxRows != 0) continue;
    CAPTURE(block_size);
    check_pool<Dim, BoxRows, T>(KvOrder::hnd, block_size);
    check_pool<Dim, BoxRows, T>(KvOrder::nhd, block_size);
  }
}

template <int Dim>
void check_dim() {
  check_block_sizes<Dim, 8>();
  check_block_sizes<Dim, 16>();
}

bool has_tma() {
  if (this_device().arch >= 90) return true;
  MESSAGE("skipped: TMA needs compute capability 9.0");
  return false;
}

}  // namespace

TEST_CASE("boxes of every head size, order and block size land where BoxedTile says, zeros where nothing is") {
  if (!has_tma()) return;
  check_dim<16>();
  check_dim<64>();
  check_dim<80>();
  check_dim<96>();
  check_dim<112>();
  check_dim<128>();
  check_dim<192>();
  check_dim<256>();
  check_block_sizes<128, 64>();
  check_block_sizes<128, 16, f16>();
}

TEST_CASE("boxes are lifted from beyond 2^32 elements, and from views whose strides are not a pool's") {
  if (!has_tma()) return;
  std::size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "memory");
  if (free_bytes < std::size_t{10} << 30) {
    MESSAGE("skipped: 10 GB of device memory are not free");
    return;
  }
  // Two blocks more than 2^32 elements apart; in each, heads and rows with gaps between them.
  constexpr int dim = 128, box_rows = 16;
  const KvLayout layout{.num_blocks = 2, .kv_heads = 3, .block_size = 32, .head_dim = dim};
  const auto elements = numbered_elements<bf16>(layout);
  const View<const bf16, 4> view = block_view(elements.data(), layout, dim);
  constexpr std::int64_t block_stride = (std::int64_t{1} << 32) + 64, head_stride = 5000, slot_stride = 136;
  const DeviceArray<bf16> pool(static_cast<std::size_t>(block_stride + 3 * head_stride));
  const View<bf16, 4, Space::device> spread{
      .data = pool.data(), .extents = {2, 3, 32, dim}, .strides = {block_stride, head_stride, slot_stride, 1}};
  for (int block = 0; block < 2; ++block)
    for (int head = 0; head < 3; ++head)
      check(cudaMemcpy2D(pool.data() + block * block_stride + head * head_stride, 2 * slot_stride,
                         view.at(block, head, 0, 0), 2 * dim, 2 * dim, 32, cudaMemcpyHostToDevice),
            "spread");
  CHECK(num_wrong<dim, box_rows, bf16>(spread, view, pieces_of(layout, box_rows, 20)) == 0);
}
