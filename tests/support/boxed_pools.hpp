// Pools and pieces of them for the tests of TMA: what a tile of boxes must hold, told without TMA's own numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "support/random.hpp"

namespace pagedkv_test {

/// Where a box begins.
struct Piece {
  int block, head, slot;
};

inline constexpr int boxes_per_tile = 2;

/// Whole boxes and ones that hang over a block's ends, of blocks that exist and that do not. An even number.
inline std::vector<Piece> pieces_of(const pagedkv::KvLayout& layout, int box_rows, int num_pieces) {
  Random random(static_cast<std::uint64_t>(layout.head_dim * 1000 + layout.block_size));
  const int num_blocks = static_cast<int>(layout.num_blocks);
  std::vector<Piece> pieces;
  for (const int block : {-1, num_blocks, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()})
    pieces.push_back({block, 0, 0});
  for (const int slot : {-3, layout.block_size - 3}) pieces.push_back({num_blocks - 1, layout.kv_heads - 1, slot});
  while (static_cast<int>(pieces.size()) < num_pieces)
    pieces.push_back({random.between(0, num_blocks - 1), random.between(0, layout.kv_heads - 1),
                      random.between(0, layout.block_size / box_rows - 1) * box_rows});
  return pieces;
}

/// A pool's K: bits that tell neighbours apart, any of which may be a NaN's.
template <class T>
std::vector<T> numbered_elements(const pagedkv::KvLayout& layout) {
  std::vector<T> elements(static_cast<std::size_t>(layout.key_elements()));
  for (std::size_t i = 0; i < elements.size(); ++i)
    elements[i].bits = static_cast<std::uint16_t>(i * 40503 + i / 65536 + 1);
  return elements;
}

/// Row `row`, column `column` of the box that begins at `piece`.
template <class T>
std::uint16_t expected_bits(const pagedkv::View<const T, 4>& view, const Piece& piece, int row, int column) {
  const std::int64_t slot = std::int64_t{piece.slot} + row;
  if (piece.block < 0 || piece.block >= view.extents[0] || slot < 0 || slot >= view.extents[2]) return 0;
  return view(piece.block, piece.head, slot, column).bits;
}

}  // namespace pagedkv_test
