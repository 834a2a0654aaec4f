// The batches of the prefill benchmark: FlashAttention-3's grid, and chunks of a prompt whose prefix is cached.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "pagedkv/core/math.hpp"

namespace bench {

/// Equal sequences: each brings q_len queries, its newest keys, to kv_len keys in all.
struct PrefillShape {
  int head_dim;
  bool causal;  // otherwise every query sees every key
  int q_heads, kv_heads;
  int num_seqs, q_len, kv_len;

  std::int64_t num_tokens() const { return std::int64_t{num_seqs} * q_len; }
  std::int64_t q_elements() const { return num_tokens() * q_heads * head_dim; }
  std::int64_t kv_bytes() const { return std::int64_t{num_seqs} * kv_len * kv_heads * head_dim * 2 * 2; }

  /// Two products of 2 * head_dim operations for each query and key; causal: for the keys that it sees, half of the
  /// square where q_len and kv_len are equal, as is usual in the field (the diagonal counts half).
  double flops() const {
    const double keys = causal ? kv_len - q_len / 2. : kv_len;
    return 4. * static_cast<double>(q_elements()) * keys;
  }

  /// "d128/causal/32_8/4x4096", or "d128/causal/32_8/4x512_in_4096" where keys are older than the queries. Stands in
  /// the benchmark's name and in the peers' table.
  std::string name() const {
    const auto number = [](int n) { return std::to_string(n); };
    std::string text = "d";
    text += number(head_dim) + (causal ? "/causal/" : "/full/") + number(q_heads) + "_" + number(kv_heads) + "/" +
            number(num_seqs) + "x" + number(q_len);
    if (q_len != kv_len) text += "_in_" + number(kv_len);
    return text;
  }
};

/// 16,384 tokens in equal sequences (FlashAttention-3, arXiv:2407.08608, sec. 4.1).
inline std::vector<PrefillShape> prefill_grid() {
  struct Heads {
    int q, kv;
  };
  constexpr int num_tokens = 16384;
  std::vector<PrefillShape> shapes;
  for (const int head_dim : {128, 64, 256})
    for (const Heads heads : {Heads{32, 8}, Heads{32, 32}, Heads{16, 16}})
      for (const bool causal : {true, false})
        for (const int len : {512, 1024, 2048, 4096, 8192, 16384})
          shapes.push_back({head_dim, causal, heads.q, heads.kv, num_tokens / len, len, len});
  return shapes;
}

/// Chunks of long prompts, and batches of shorter ones whose prefix is cached.
inline std::vector<PrefillShape> prefill_chunks() {
  std::vector<PrefillShape> shapes;
  for (const int q_heads : {32, 64}) {
    const auto add = [&](int num_seqs, int q_len, int kv_len) {
      shapes.push_back({128, true, q_heads, 8, num_seqs, q_len, kv_len});
    };
    for (const int kv_len : {8192, 16384, 65536})
      for (const int q_len : {512, 2048, 8192}) add(1, q_len, kv_len);
    add(4, 512, 4096);
    add(4, 2048, 4096);
    add(8, 128, 2048);
    add(8, 2048, 2048);
    add(16, 16, 1024);
  }
  // A share of such a model's heads, as one GPU of eight has it.
  for (const int q_len : {128, 512}) shapes.push_back({128, true, 8, 1, 1, q_len, 65536});
  return shapes;
}

/// Which kernel: the one that prefill() chooses, or always the one for every GPU.
enum class PrefillPath { best, sm80 };

struct PrefillCase {
  static constexpr int contiguous = 0;

  std::string group;
  PrefillShape shape;
  int blocks = 16;  // their size, or contiguous: one block a sequence, through the same kernel
  PrefillPath path = PrefillPath::best;

  int block_size() const { return blocks == contiguous ? pagedkv::round_up(shape.kv_len, 128) : blocks; }
  std::string name() const {
    return group + "/" + shape.name() + "/" + (blocks == contiguous ? "contiguous" : "block" + std::to_string(blocks));
  }
};

/// The grid and the chunks over all blocks, the kinds of blocks of a shape one behind the other: 380 cases; then the
/// kernel for every GPU.
inline std::vector<PrefillCase> prefill_cases() {
  std::vector<PrefillCase> cases;
  for (const PrefillShape& shape : prefill_grid())
    for (const int blocks : {16, 128, PrefillCase::contiguous}) cases.push_back({"grid", shape, blocks});
  for (const PrefillShape& shape : prefill_chunks())
    for (const int blocks : {16, 128}) cases.push_back({"chunked", shape, blocks});
  for (const PrefillShape& shape : prefill_grid())
    if (shape.head_dim == 128 && shape.q_heads == 32 && shape.kv_heads == 8)
      cases.push_back({"sm80", shape, 16, PrefillPath::sm80});
  return cases;
}

/// Calls that follow each other read Q, K and V of their own: three sets as the peers had on the grid, and as many as
/// make a gigabyte of K and V, but at most one for each call of a burst, where a set could stay in L2.
inline int num_prefill_sets(const PrefillShape& shape, int calls_of_burst) {
  if (shape.q_len == shape.kv_len) return 3;
  const std::int64_t wanted = pagedkv::ceil_div(std::int64_t{1'000'000'000}, shape.kv_bytes());
  return static_cast<int>(std::clamp<std::int64_t>(wanted, 3, calls_of_burst));
}

/// A row of the batch.
struct SampledRow {
  int sequence, query;
};

/// The rows that are checked: the batch's first and last, and between them one of every 64, of as many tiles as hold
/// `max_keys` keys in all. Sorted, never empty.
inline std::vector<SampledRow> sampled_rows(const PrefillShape& shape, std::int64_t max_keys, unsigned seed) {
  constexpr std::int64_t tile = 64;
  const std::int64_t num_tokens = shape.num_tokens();
  const std::int64_t num_tiles = pagedkv::ceil_div(num_tokens, tile);
  const std::int64_t affordable = std::clamp<std::int64_t>(max_keys / shape.kv_len, 1, num_tiles);
  std::mt19937 random(seed);
  std::vector<std::int64_t> rows = {0};
  for (std::int64_t i = 0; i < affordable; ++i) {
    const std::int64_t first = i * num_tiles / affordable * tile;
    rows.push_back(first + static_cast<std::int64_t>(random()) % std::min(tile, num_tokens - first));
  }
  rows.push_back(num_tokens - 1);
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  std::vector<SampledRow> sampled;
  for (const std::int64_t row : rows)
    sampled.push_back({static_cast<int>(row / shape.q_len), static_cast<int>(row % shape.q_len)});
  return sampled;
}

}  // namespace bench
