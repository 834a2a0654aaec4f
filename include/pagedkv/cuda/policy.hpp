// Every tuned number of the CUDA kernels, and which configurations they support: constexpr, no CUDA include.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pagedkv/core/math.hpp"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

/// What decides about a kernel before a problem is seen.
struct KernelShape {
  int arch = 80;  // as in DeviceInfo
  int head_dim = 0, head_dim_v = 0;
  int query_bytes = 2, element_bytes = 2;  // of one element of q; of K and V
};

/// Yes, or why not.
struct Support {
  const char* reason = nullptr;

  constexpr explicit operator bool() const { return reason == nullptr; }
};

/// decode_sm80: each warp streams its own 16 keys at a time through its own ring of stages.
struct DecodePolicy {
  int rows;               // packed rows of a tile: query heads of a KV head, times queries; 8 or 16
  int warps;              // of a CTA
  int stages;             // of a warp, 16 keys and values each
  int ctas_per_sm;        // of the grid, and what registers are spent on
  int min_slice_tiles;    // of 16 keys a warp: a CTA is not woken for less while half of the SMs have work
  int small_slice_tiles;  // one CTA an SM while its slice is no longer
  int piece_tiles;        // batch-invariant: a partial ends at multiples of so many tiles

  friend constexpr bool operator==(const DecodePolicy&, const DecodePolicy&) = default;
};

/// decode_simt: one warp per (query row, query head).
struct DecodeSimtPolicy {
  int max_warps;    // of a CTA
  int query_tile;   // query rows of a work item, where a sequence brings more than one
  int split_keys;   // a partial ends after so many keys whoever computes it: bits must not depend on the batch
  int ctas_per_sm;  // splits of one row are shared among CTAs until the GPU has this many
  int max_ctas;     // of a grid; behind it CTAs take several units of work, so no batch is too large

  friend constexpr bool operator==(const DecodeSimtPolicy&, const DecodeSimtPolicy&) = default;
};

/// prefill_sm80: a CTA per (query tile, query head); K and V flow through `stages` buffers of key_tile rows each.
struct PrefillPolicy {
  int query_tile;       // query rows of a work item, 16 or 32 a warp
  int key_tile;         // keys of one pass
  int warps;            // of a CTA
  int stages;           // with 1, K of the next tile is under way while V of this one is multiplied, and so on
  int ctas_per_sm = 1;  // what registers are spent on

  friend constexpr bool operator==(const PrefillPolicy&, const PrefillPolicy&) = default;
};

/// prefill_sm90: a CTA per SM, whose warpgroups share tiles of key_tile keys.
struct PrefillSm90Policy {
  int query_tile;                // packed rows, 64 for each warpgroup that multiplies
  int key_tile;                  // keys of one pass
  int key_stages, value_stages;  // tiles that fit in shared memory
  int query_buffers;             // 2: the next tile's queries are fetched while the present one is computed
  bool splits_keys = false;      // rows are left in pieces, for prefill_merge

  friend constexpr bool operator==(const PrefillSm90Policy&, const PrefillSm90Policy&) = default;
};

/// copy_blocks, store_kv, gather_kv and swap_blocks: CTAs that move tiles of pieces, 16 bytes each where everything is
/// aligned.
struct MovePolicy {
  int threads;            // of a CTA
  int pieces_per_thread;  // in flight: all are loaded before the first is stored
  int max_ctas;           // copy_blocks, swap_blocks: behind it CTAs take several layers, or tiles in turns

  friend constexpr bool operator==(const MovePolicy&, const MovePolicy&) = default;
};

/// One row serves every GPU. Tiles of 8 KiB: 1 MB fills the SMs of an H200 with one CTA each.
constexpr MovePolicy choose_move() { return {.threads = 128, .pieces_per_thread = 4, .max_ctas = 1 << 14}; }

/// Few SMs fill the bus, and others have work for the rest: 1 MiB in flight. H200, blocks of 64 KiB a layer, 2026-11,
/// percent of one memcpy's rate: from 256 blocks or 32 layers on 93 to 95 out, 91 to 92 in; 64 blocks of one layer 90
/// out, 16 blocks 78.
constexpr MovePolicy choose_swap() { return {.threads = 512, .pieces_per_thread = 4, .max_ctas = 32}; }

/// Bytes of shared memory that a CTA's ring of stages takes.
constexpr int decode_ring_bytes(const DecodePolicy& policy, int head_dim, int head_dim_v) {
  return policy.warps * policy.stages * 16 * 2 * (head_dim + head_dim_v);
}

/// narrow: 8 packed rows, two CTAs an SM: many sequences, of any lengths.
/// wide: the same for 16 packed rows, up to head_dim 128.
/// lone: 8 packed rows, one CTA an SM with twice the warps: so few rows that all SMs share the keys of each.
enum class DecodeTile { narrow, wide, lone };

/// As many stages as 88 KiB hold: with queries and tables of its own a CTA takes less than 99 KiB, so that two fit on an
/// H200's SM, one on that of the smallest supported GPU. Lone tiles take twice as much for their two stages. Figures of
/// one H200, bf16, head_dim 128, 32 query and 8 KV heads, blocks of 16, 2026-11, us:
///
///   keys                 1 x 1,024   1 x 4,096   1 x 16,384   8 x 4,096   32 log-normal   128 log-normal   128 x 1,024
///   narrow                     6.0         8.8         21.7        37.1            75.8              263           132
///   lone                       5.4         8.4         21.2        37.1            78.9              279           133
///   4 queries: wide           11.4        16.9         29.8                        94.9                            137
///   lone                       8.1        12.1         28.4
///   wide like lone             8.5        12.6         27.3                        91.4                            142
///
/// Of 8 queries, wide tiles like lone ones took 270 instead of 207 for 128 x 1,024: two tiles of a sequence are then not
/// read at the same time, so L2 serves neither. A lone one with min_slice_tiles 4: 22.2 for 1 x 16,384. Earlier versions
/// of the narrow one: 3 stages the same within 1%; 3 CTAs an SM, 168 registers, 6% slower; min_slice_tiles 1 16% slower
/// at 1 x 4,096; small_slice_tiles 0 6% slower at 1 x 16,384.
constexpr DecodePolicy choose_decode(DecodeTile tile, int head_dim, int head_dim_v) {
  const bool is_large = max(head_dim, head_dim_v) > 128;
  if (tile == DecodeTile::lone)
    return {.rows = 8,
            .warps = is_large ? 4 : 8,
            .stages = 2,
            .ctas_per_sm = 1,
            .min_slice_tiles = is_large ? 4 : 16,
            .small_slice_tiles = 16,
            .piece_tiles = 4};
  DecodePolicy policy{.rows = tile == DecodeTile::wide && !is_large ? 16 : 8,
                      .warps = is_large ? 2 : 4,
                      .stages = 1,
                      .ctas_per_sm = 2,
                      .min_slice_tiles = 4,
                      .small_slice_tiles = 16,
                      .piece_tiles = 8};
  policy.stages = min(5, 88 * 1024 / decode_ring_bytes(policy, head_dim, head_dim_v));
  return policy;
}

/// `packed_rows`: of a KV head and the longest sequence; `num_heads`: KV heads of all sequences. Batch-invariant calls may
/// not have lone tiles, whose warps add up in another order than those of the others.
constexpr DecodeTile choose_decode_tile(int head_dim, std::int64_t packed_rows, std::int64_t num_heads, int num_sms,
                                        bool may_be_lone) {
  if (may_be_lone && packed_rows <= 32 && 8 * num_heads <= num_sms) return DecodeTile::lone;
  return packed_rows > 8 && head_dim <= 128 ? DecodeTile::wide : DecodeTile::narrow;
}

/// One row serves every GPU: this kernel is the readable second opinion, not the fast one. H200, bf16, head_dim 128, 32
/// query and 8 KV heads, 2026-11: 64 sequences of 8,192 keys 2.25 ms, 21% of what the GPU can read; 1 of 1,024 keys 40
/// us. split_keys 256: 2.58 ms and 74 us; 64: 2.53 ms and 24 us, but 1 of 65,536 keys 529 us instead of 402 us.
constexpr DecodeSimtPolicy choose_decode_simt(int /*arch*/, int /*head_dim*/, int /*element_bytes*/) {
  return {.max_warps = 8, .query_tile = 4, .split_keys = 128, .ctas_per_sm = 16, .max_ctas = 1 << 16};
}

/// As FlashAttention-2 has it on sm_80: 128 rows, 32 a warp, and one stage, 64 KiB at head_dim 128: two CTAs fit on an
/// SM of compute capability 8.0 and 9.0, one on 8.6 and 8.9. Beyond 128 an output of 32 rows a warp does not fit in
/// registers.
constexpr PrefillPolicy choose_prefill(int /*arch*/, int head_dim, int /*element_bytes*/) {
  if (head_dim <= 128) return {.query_tile = 128, .key_tile = 64, .warps = 4, .stages = 1};
  return {.query_tile = 64, .key_tile = 64, .warps = 4, .stages = 1};  // 96 KiB at head_dim 256
}

/// Sequences with fewer queries are decode's, the others prefill's; a sequence's own length decides, so company does
/// not. `packed_heads`: query heads whose rows share a tile of prefill, 1 where each head has tiles of its own. Decode
/// reads K and V once for every 16 rows of a KV head: as long as prefill would read them as often, decode is better,
/// since it cuts keys evenly over all SMs and wastes no rows. From there on each further tile costs as much as the
/// first (H200, bf16, head_dim 128, 32 query and 8 KV heads, 2026-11: 32 sequences of 4,096 keys 135 us with 16 rows,
/// 236 us with 32; 128 of 1,024 140 and 206 us), a tile of prefill is already paid for. Up to 8 queries, a token and
/// its drafts, stay decode's for small batches: 32 rows of 1 sequence of 4,096 keys take no longer than 16, 22 us, one
/// tile of prefill about 60.
constexpr int prefill_min_q_len(int packed_heads) { return max(9, 16 / packed_heads + 1); }

/// H200, bf16, blocks of 16 strewn over gigabytes, 2026-11, TFLOP/s in bursts. head_dim 128, 32 query and 8 KV heads:
/// wide tiles 690 full and 615 causal at 4 x 4,096, tiles of 128 rows 626 to 640 and 582 to 608; 512 new tokens in
/// 8,192 373 wide, 460 to 520 with 128 rows. With two stages of V 8 x 2,048 causal 485 instead of 548; with three of K
/// and one buffer of queries 32 x 512 causal 322 instead of 364. head_dim 64, 32 heads: 483 full at 4 x 4,096; 256:
/// 706.
constexpr PrefillSm90Policy choose_prefill_sm90(int head_dim, int head_dim_v, bool many_tiles) {
  const int widest = max(head_dim, head_dim_v);
  PrefillSm90Policy policy{.query_tile = 128,
                           .key_tile = 128,
                           .key_stages = 2,
                           .value_stages = widest <= 128 ? 3 : 2,
                           .query_buffers = head_dim <= 128 ? 2 : 1};
  if (widest > 128 && head_dim_v > 128) policy.key_tile = widest <= 192 ? 112 : 80;
  if (many_tiles && (widest <= 64 || widest == 128)) {
    policy.query_tile = 192;
    policy.key_tile = widest <= 64 ? 128 : 80;
    policy.key_stages = 3;
  }
  return policy;
}

/// Tiles of choose_prefill_sm90(.., true) for each SM from which on they are `many`.
inline constexpr int prefill_many_tiles = 4;

/// choose_prefill_sm90(.., false), whose tiles are so few that their keys are shared out among idle SMs.
constexpr PrefillSm90Policy choose_prefill_sm90_splits(int head_dim, int head_dim_v) {
  PrefillSm90Policy policy = choose_prefill_sm90(head_dim, head_dim_v, false);
  policy.splits_keys = true;
  return policy;
}

/// Shares of a tile's keys: as many as fill the GPU, none of fewer than 512 keys if all are seen, whose merging would
/// take as long as they do.
constexpr std::int64_t prefill_splits(std::int64_t num_tiles, int max_kv_len, int num_sms) {
  return num_tiles == 0 ? 1 : clamp<std::int64_t>(min<std::int64_t>(num_sms / num_tiles, max_kv_len / 512), 1, 32);
}

/// The least arch that any kernel is built for.
inline constexpr int min_arch = 80;

/// What mma.m16n8k16 of 16-bit elements asks for, whatever the policy.
constexpr Support tensor_core_support(const KernelShape& shape) {
  if (shape.arch < min_arch) return {"needs compute capability 8.0"};
  if (shape.query_bytes != 2 || shape.element_bytes != 2) return {"q, K and V must be of 16-bit elements"};
  if (shape.head_dim < 16 || shape.head_dim > 256 || shape.head_dim % 16 != 0)
    return {"head_dim must be a multiple of 16 up to 256"};
  if (shape.head_dim_v < 16 || shape.head_dim_v > 256 || shape.head_dim_v % 16 != 0)
    return {"head_dim_v must be a multiple of 16 up to 256"};
  return {};
}

/// `shared_bytes_per_cta`: see prefill.
constexpr Support is_supported(const DecodePolicy& policy, const KernelShape& shape,
                               std::size_t shared_bytes_per_cta = 99 * 1024) {
  if (const Support support = tensor_core_support(shape); !support) return support;
  if (policy.rows != 8 && policy.rows != 16) return {"a tile has 8 or 16 packed rows"};
  if (policy.warps < 1 || policy.warps > 32) return {"a CTA has 1 to 32 warps"};
  if (policy.stages < 2) return {"one stage is in flight while another is computed: at least 2"};
  if (policy.ctas_per_sm < 1 || policy.min_slice_tiles < 1 || policy.small_slice_tiles < 0 || policy.piece_tiles < 1)
    return {"ctas_per_sm, min_slice_tiles and piece_tiles must be at least 1, small_slice_tiles at least 0"};
  const int piece_keys = 16 * policy.warps * policy.piece_tiles;
  if ((policy.warps & (policy.warps - 1)) != 0 || (piece_keys & (piece_keys - 1)) != 0)
    return {"warps and piece_tiles must be powers of two"};
  const std::size_t softmax_bytes = 8 * static_cast<std::size_t>(policy.warps * policy.rows) +
                                    4 * static_cast<std::size_t>(policy.rows * shape.head_dim) + 2048;
  const auto ring_bytes = static_cast<std::size_t>(decode_ring_bytes(policy, shape.head_dim, shape.head_dim_v));
  if (ring_bytes + softmax_bytes > shared_bytes_per_cta) return {"the rings of stages do not fit in shared memory"};
  return {};
}

constexpr Support is_supported(const DecodeSimtPolicy& policy, const KernelShape& shape) {
  if (shape.arch < min_arch) return {"needs compute capability 8.0"};
  if (shape.head_dim < 1 || shape.head_dim > 256) return {"head_dim must be 1 to 256"};
  if (shape.head_dim_v < 1 || shape.head_dim_v > 256) return {"head_dim_v must be 1 to 256"};
  if (policy.max_warps < 1 || policy.max_warps > 32) return {"a CTA has 1 to 32 warps"};
  if (policy.query_tile < 1 || policy.ctas_per_sm < 1 || policy.max_ctas < 1)
    return {"query_tile, ctas_per_sm and max_ctas must be at least 1"};
  if (policy.split_keys < 32 || policy.split_keys % 32 != 0)
    return {"split_keys must be a multiple of 32, the keys of one pass of a warp"};
  return {};
}

/// Shared memory of prefill_sm80: the query tile, K and V of every stage, 16-bit elements; and what the CTA works on.
constexpr std::size_t prefill_shared_bytes(const PrefillPolicy& policy, int head_dim, int head_dim_v) {
  const int rows = policy.stages * policy.key_tile;
  return 2 * static_cast<std::size_t>(policy.query_tile * head_dim + rows * (head_dim + head_dim_v)) + 128;
}

/// 99 KiB is what a CTA gets on the smallest of the supported GPUs (compute capability 8.6 and 8.9).
constexpr Support is_supported(const PrefillPolicy& policy, const KernelShape& shape,
                               std::size_t shared_bytes_per_cta = 99 * 1024) {
  if (const Support support = tensor_core_support(shape); !support) return support;
  if (policy.warps < 1 || policy.warps > 32) return {"a CTA has 1 to 32 warps"};
  if (policy.query_tile != 16 * policy.warps && policy.query_tile != 32 * policy.warps)
    return {"a warp holds 16 or 32 query rows"};
  if (policy.key_tile < 16 || policy.key_tile % 16 != 0) return {"key_tile must be a multiple of 16"};
  if (policy.key_tile % policy.warps != 0 || policy.key_tile / policy.warps > 32)
    return {"warps must share the rows of a key tile evenly, at most 32 each"};
  if (policy.stages < 1) return {"a CTA has at least 1 stage"};
  if (policy.ctas_per_sm < 1) return {"an SM has at least 1 CTA"};
  if (prefill_shared_bytes(policy, shape.head_dim, shape.head_dim_v) > shared_bytes_per_cta)
    return {"query and key tiles do not fit in shared memory"};
  return {};
}

/// Shared memory of prefill_sm90's tiles: queries, then K and V of every stage; 16-bit elements.
constexpr std::size_t prefill_sm90_shared_bytes(const PrefillSm90Policy& policy, int head_dim, int head_dim_v) {
  const int keys = policy.key_stages * policy.key_tile, values = policy.value_stages * policy.key_tile;
  return 2 *
         static_cast<std::size_t>((policy.query_buffers * policy.query_tile + keys) * head_dim + values * head_dim_v);
}

/// Hopper's own instructions: no GPU before it or behind it has them. 2 KiB are for barriers and alignment.
constexpr Support is_supported(const PrefillSm90Policy& policy, const KernelShape& shape,
                               std::size_t shared_bytes_per_cta = 227 * 1024) {
  if (shape.arch != 90) return {"needs compute capability 9.0"};
  if (const Support support = tensor_core_support(shape); !support) return support;
  const auto has_tile = [](int dim) { return dim == 64 || dim == 96 || dim == 128 || dim == 192 || dim == 256; };
  if (!has_tile(shape.head_dim)) return {"head_dim must be 64, 96, 128, 192 or 256"};
  if (!has_tile(shape.head_dim_v)) return {"head_dim_v must be 64, 96, 128, 192 or 256"};
  if (policy.query_tile != 128 && policy.query_tile != 192) return {"two or three warpgroups multiply, 64 rows each"};
  if (policy.key_tile < 16 || policy.key_tile > 256 || policy.key_tile % 16 != 0)
    return {"key_tile must be a multiple of 16 up to 256"};
  if (policy.key_stages < 2 || policy.value_stages < 2)
    return {"one tile is in flight while another is computed: at least 2 stages"};
  if (policy.query_buffers < 1) return {"a tile's queries need a buffer"};
  if (prefill_sm90_shared_bytes(policy, shape.head_dim, shape.head_dim_v) + 2048 > shared_bytes_per_cta)
    return {"query and key tiles do not fit in shared memory"};
  return {};
}

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
