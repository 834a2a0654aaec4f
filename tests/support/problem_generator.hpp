// Random attention problems in plain host arrays, poisoned wherever no live token is; any back end can copy and run
// them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "support/random.hpp"

namespace pagedkv_test {

/// hnd and nhd are the library's own orders; in `interleaved` the K and V of a head lie side by side and slots are
/// padded.
enum class PoolOrder { hnd, nhd, interleaved };

/// All that decides a problem but the values.
struct ProblemShape {
  std::uint64_t seed = 0;
  std::vector<int> q_len, kv_len;  // [num_seqs]
  int kv_heads = 1, group_size = 1;
  int head_dim = 16, head_dim_v = 16;
  int block_size = 16;
  PoolOrder order = PoolOrder::hnd;
  int spare_tokens = 0;         // rows of q behind the last sequence
  bool shares_prefixes = true;  // may a sequence begin with the blocks of the one before it?

  int num_seqs() const { return static_cast<int>(q_len.size()); }
  int q_heads() const { return kv_heads * group_size; }

  /// Printed when a check fails: with it the problem can be made again.
  std::string describe() const {
    static constexpr const char* orders[] = {"hnd", "nhd", "interleaved"};
    std::string text = "seed " + std::to_string(seed) + ", " + orders[static_cast<int>(order)] + ", block_size " +
                       std::to_string(block_size) + ", heads " + std::to_string(q_heads()) + "/" +
                       std::to_string(kv_heads) + ", head_dim " + std::to_string(head_dim) + "/" +
                       std::to_string(head_dim_v) + ", q/kv";
    for (int s = 0; s < num_seqs(); ++s) {
      const auto i = static_cast<std::size_t>(s);
      text.append(" ").append(std::to_string(q_len[i])).append("/").append(std::to_string(kv_len[i]));
    }
    return text;
  }
};

/// What random_shape() may draw. Empty lists: anything.
struct ShapeLimits {
  std::vector<int> head_dims = {};
  bool same_head_dim_v = false;
  int max_seqs = 5;
  int max_kv_len = 130;
  int max_q_len = 17;
  int max_group_size = 16;
};

/// Ragged lengths with 0 and 1, queries without keys, block sizes from 1 to 256, groups from 1 to 16, odd numbers of
/// all.
inline ProblemShape random_shape(std::uint64_t seed, const ShapeLimits& limits = {}) {
  Random random(seed);
  ProblemShape shape;
  shape.seed = seed;
  const auto head_dim = [&] {
    if (limits.head_dims.empty()) return random.one_in(3) ? random.between(1, 80) : random.pick({8, 16, 32, 64});
    return limits.head_dims[static_cast<std::size_t>(random.between(0, static_cast<int>(limits.head_dims.size()) - 1))];
  };
  shape.head_dim = head_dim();
  shape.head_dim_v = limits.same_head_dim_v || !random.one_in(3) ? shape.head_dim : head_dim();
  shape.block_size = random.one_in(3) ? random.between(1, 40) : random.pick({1, 2, 7, 8, 16, 32, 64, 256});
  shape.group_size = std::min(random.pick({1, 1, 2, 3, 4, 5, 7, 8, 16}), limits.max_group_size);
  shape.kv_heads = random.between(1, shape.group_size > 4 ? 2 : 3);
  shape.order = static_cast<PoolOrder>(random.between(0, 2));
  shape.spare_tokens = random.one_in(4) ? random.between(1, 3) : 0;
  for (int s = random.between(1, limits.max_seqs); s > 0; --s) {
    const int edge =
        shape.block_size * random.between(0, limits.max_kv_len / shape.block_size);  // full blocks, and one off
    const int kv_len = random.one_in(8)   ? random.pick({0, 1})
                       : random.one_in(4) ? edge + random.between(-1, 1)
                                          : random.between(0, limits.max_kv_len);
    shape.kv_len.push_back(std::clamp(kv_len, 0, limits.max_kv_len));
    const int q_len = random.one_in(2)   ? 1
                      : random.one_in(6) ? 0
                      : random.one_in(6) ? shape.kv_len.back() + random.between(1, 4)  // more queries than keys
                      : random.one_in(4) ? shape.kv_len.back()
                                         : random.between(0, shape.kv_len.back());
    shape.q_len.push_back(std::min(q_len, limits.max_q_len));
  }
  return shape;
}

/// Where the arrays of a problem lie, on either side of the bus.
template <pagedkv::StorageType Q, pagedkv::StorageType KV, pagedkv::StorageType O>
struct ProblemArrays {
  const Q* q;
  const KV* pool;
  const std::int32_t *block_ids, *kv_len, *query_begin;
  O* out;      // with margins
  float* lse;  // with margins
};

/// A problem that owns its arrays. Values lie in [-1, 1], queries in [-6, 6].
template <pagedkv::StorageType Q, pagedkv::StorageType KV = Q, pagedkv::StorageType O = Q>
struct GeneratedProblem {
  static constexpr std::size_t margin = 64;  // canary elements before and behind out and lse; keeps 16-byte alignment

  ProblemShape shape;
  std::vector<Q> q;                       // [num_tokens, q_heads, head_dim]
  std::vector<KV> pool;                   // K and V, in shape.order; NaN and infinities where no live token is
  std::vector<std::int32_t> block_ids;    // [num_seqs, max_blocks_per_seq]; padding: -1, INT_MAX
  std::vector<std::int32_t> kv_len;       // [num_seqs]
  std::vector<std::int32_t> query_begin;  // [num_seqs + 1]
  std::vector<O> out;                     // margin + [num_tokens, q_heads, head_dim_v] + margin
  std::vector<float> lse;                 // margin + [num_tokens, q_heads] + margin
  std::vector<float> slopes, sinks;       // [q_heads], for Alibi and SinkLogit
  std::vector<std::uint64_t> tree;        // [num_tokens + 1], for TreeMask; never empty
  int num_blocks = 0, max_blocks_per_seq = 0;
  float scale = 1.f;

  explicit GeneratedProblem(const ProblemShape& from) : shape(from) {
    Random random(shape.seed + 1);
    fill_tables(random);
    fill_pool();
    random = Random(shape.seed + 3);
    scale = 1.f / std::sqrt(static_cast<float>(shape.head_dim));
    q.resize(size(num_tokens()) * size(shape.q_heads()) * size(shape.head_dim));
    for (Q& x : q) x = pagedkv::from_float<Q>(random.real(6.f));
    for (int head = 0; head < shape.q_heads(); ++head) {
      slopes.push_back(std::exp2(-8.f * static_cast<float>(head + 1) / static_cast<float>(shape.q_heads())));
      sinks.push_back(random.real(3.f));
    }
    plant_trees(random);
    clear_outputs();
  }

  int num_tokens() const { return query_begin.back() + shape.spare_tokens; }

  ProblemArrays<Q, KV, O> arrays() {
    return {q.data(), pool.data(), block_ids.data(), kv_len.data(), query_begin.data(), out.data(), lse.data()};
  }

  /// The problem over these arrays, or over copies of them elsewhere.
  template <pagedkv::Space S = pagedkv::Space::host>
  pagedkv::AttentionProblem<S, Q, KV, O> over(const ProblemArrays<Q, KV, O>& at) const {
    using pagedkv::dense_view;
    const std::int64_t tokens = num_tokens(), heads = shape.q_heads(), seqs = shape.num_seqs();
    return {.q = dense_view<S>(at.q, {tokens, heads, shape.head_dim}),
            .kv = kv_view<S>(at.pool),
            .tables = {.block_ids = dense_view<S>(at.block_ids, {seqs, max_blocks_per_seq}),
                       .kv_len = dense_view<S>(at.kv_len, {seqs}),
                       .query_begin = dense_view<S>(at.query_begin, {seqs + 1}),
                       .max_q_len = *std::max_element(shape.q_len.begin(), shape.q_len.end()),
                       .max_kv_len = *std::max_element(shape.kv_len.begin(), shape.kv_len.end())},
            .out = dense_view<S>(at.out + margin, {tokens, heads, shape.head_dim_v}),
            .lse = dense_view<S>(at.lse + margin, {tokens, heads}),
            .scale = scale};
  }

  pagedkv::AttentionProblem<pagedkv::Space::host, Q, KV, O> problem() { return over(arrays()); }

  template <pagedkv::Space S, class T>
  pagedkv::KvView<T, S> kv_view(T* data) const {
    if (shape.order != PoolOrder::interleaved) return pagedkv::layers_view<S>(data, layout()).layer(0);
    const std::int64_t heads = shape.kv_heads, slots = shape.block_size, dim = shape.head_dim, dim_v = shape.head_dim_v;
    pagedkv::KvView<T, S> view{.k = {.data = data, .extents = {num_blocks, heads, slots, dim}},
                               .v = {.data = data + dim, .extents = {num_blocks, heads, slots, dim_v}}};
    for (auto* kv : {&view.k, &view.v}) {
      kv->strides[0] = interleaved_slot() * slots;
      kv->strides[1] = dim + dim_v;
      kv->strides[2] = interleaved_slot();
      kv->strides[3] = 1;
    }
    return view;
  }

  /// A problem of these sequences of this one, in this order, over the same pool; one may come several times.
  GeneratedProblem with_sequences(const std::vector<int>& sequences) const {
    GeneratedProblem chosen = *this;
    chosen.shape.q_len.clear();
    chosen.shape.kv_len.clear();
    chosen.block_ids.clear();
    chosen.kv_len.clear();
    chosen.query_begin = {0};
    chosen.q.clear();
    chosen.tree.clear();
    const auto append_rows = [&](auto& to, const auto& from, int sequence, std::size_t row) {
      to.insert(to.end(), from.begin() + static_cast<std::ptrdiff_t>(size(query_begin[size(sequence)]) * row),
                from.begin() + static_cast<std::ptrdiff_t>(size(query_begin[size(sequence) + 1]) * row));
    };
    for (const int s : sequences) {
      chosen.shape.q_len.push_back(shape.q_len[size(s)]);
      chosen.shape.kv_len.push_back(shape.kv_len[size(s)]);
      chosen.kv_len.push_back(kv_len[size(s)]);
      chosen.query_begin.push_back(chosen.query_begin.back() + shape.q_len[size(s)]);
      const auto ids = block_ids.begin() + static_cast<std::ptrdiff_t>(size(s) * size(max_blocks_per_seq));
      chosen.block_ids.insert(chosen.block_ids.end(), ids, ids + max_blocks_per_seq);
      append_rows(chosen.q, q, s, size(shape.q_heads()) * size(shape.head_dim));
      append_rows(chosen.tree, tree, s, 1);
    }
    chosen.tree.push_back(0);
    chosen.shape.spare_tokens = 0;
    chosen.clear_outputs();
    return chosen;
  }

  /// The results of one sequence: its rows of out, then of lse.
  std::vector<float> rows_of(int sequence) const {
    const std::size_t begin = size(query_begin[size(sequence)]), end = size(query_begin[size(sequence) + 1]);
    const std::size_t heads = size(shape.q_heads()), columns = heads * size(shape.head_dim_v);
    std::vector<float> rows;
    for (std::size_t i = begin * columns; i < end * columns; ++i) rows.push_back(pagedkv::to_float(out[margin + i]));
    rows.insert(rows.end(), lse.begin() + static_cast<std::ptrdiff_t>(margin + begin * heads),
                lse.begin() + static_cast<std::ptrdiff_t>(margin + end * heads));
    return rows;
  }

  /// Outputs back to canaries.
  void clear_outputs() {
    out.assign(2 * margin + size(num_tokens()) * size(shape.q_heads()) * size(shape.head_dim_v), canary<O>());
    lse.assign(2 * margin + size(num_tokens()) * size(shape.q_heads()), canary<float>());
  }

  /// Is every element that belongs to no query still as clear_outputs() left it?
  bool canaries_intact() const {
    const std::size_t rows = size(query_begin.back()) * size(shape.q_heads());
    return untouched(out, rows * size(shape.head_dim_v)) && untouched(lse, rows);
  }

 private:
  static std::size_t size(int n) { return static_cast<std::size_t>(n); }

  template <class T>
  static T canary() {
    return pagedkv::from_float<T>(-12345.f);
  }

  template <class T>
  static bool untouched(const std::vector<T>& elements, std::size_t used) {
    const T expected = canary<T>();
    for (std::size_t i = 0; i < elements.size(); ++i) {
      const bool outside = i < margin || i >= margin + used;
      if (outside && std::memcmp(&elements[i], &expected, sizeof(T)) != 0) return false;
    }
    return true;
  }

  std::int64_t interleaved_slot() const { return shape.kv_heads * (shape.head_dim + shape.head_dim_v) + 8; }

  pagedkv::KvLayout layout() const {
    return {.num_layers = 1,
            .num_blocks = num_blocks,
            .kv_heads = shape.kv_heads,
            .block_size = shape.block_size,
            .head_dim = shape.head_dim,
            .head_dim_v = shape.head_dim_v,
            .order = shape.order == PoolOrder::nhd ? pagedkv::KvOrder::nhd : pagedkv::KvOrder::hnd};
  }

  // Shuffled ids; now and then a sequence begins with the blocks of the one before it.
  void fill_tables(Random& random) {
    std::vector<int> needed;
    int total = 0;
    query_begin.push_back(0);
    for (int s = 0; s < shape.num_seqs(); ++s) {
      kv_len.push_back(shape.kv_len[size(s)]);
      query_begin.push_back(query_begin.back() + shape.q_len[size(s)]);
      needed.push_back(pagedkv::ceil_div(shape.kv_len[size(s)], shape.block_size));
      total += needed.back();
      max_blocks_per_seq = std::max(max_blocks_per_seq, needed.back());
    }
    max_blocks_per_seq += random.between(0, 3);
    num_blocks = total + random.between(1, 3);
    std::vector<int> ids(size(num_blocks));
    for (int i = 0; i < num_blocks; ++i) ids[size(i)] = i;
    for (int i = num_blocks - 1; i > 0; --i) std::swap(ids[size(i)], ids[size(random.between(0, i))]);

    block_ids.resize(size(shape.num_seqs()) * size(max_blocks_per_seq));
    for (std::size_t i = 0; i < block_ids.size(); ++i) block_ids[i] = i % 2 ? -1 : std::numeric_limits<int>::max();
    for (int s = 0; s < shape.num_seqs(); ++s) {
      std::int32_t* row = block_ids.data() + size(s) * size(max_blocks_per_seq);
      const int shared = s > 0 && shape.shares_prefixes && random.one_in(3)
                             ? random.between(0, std::min(needed[size(s)], needed[size(s - 1)]))
                             : 0;
      for (int i = 0; i < needed[size(s)]; ++i) {
        if (i < shared) {
          row[i] = (row - max_blocks_per_seq)[i];
        } else {
          row[i] = ids.back();
          ids.pop_back();
        }
      }
    }
  }

  // Each draft sees itself and what its parent sees, one before it; a few begin a tree of their own, a few see nothing.
  void plant_trees(Random& random) {
    tree.assign(size(num_tokens()) + 1, 0);
    for (int s = 0; s < shape.num_seqs(); ++s) {
      std::uint64_t* const drafts = tree.data() + query_begin[size(s)];
      for (int i = 0; i < shape.q_len[size(s)]; ++i) {
        if (random.one_in(8)) continue;
        drafts[i] = i == 0 || random.one_in(8) ? 0 : drafts[random.between(0, i - 1)];
        if (i < 64) drafts[i] |= std::uint64_t{1} << i;
      }
    }
  }

  // Values depend on the seed, the lengths and the heads, not on where they lie: another layout holds the same ones, as
  // long as no prefix is shared.
  void fill_pool() {
    const auto last = kv_view<pagedkv::Space::host>(static_cast<KV*>(nullptr));
    const std::int64_t interleaved = last.k.strides[0] * num_blocks;
    pool.resize(
        static_cast<std::size_t>(shape.order == PoolOrder::interleaved ? interleaved : layout().num_elements()));
    const float poison[] = {std::nanf(""), pagedkv::infinity, -pagedkv::infinity};
    for (std::size_t i = 0; i < pool.size(); ++i) pool[i] = pagedkv::from_float<KV>(poison[i % 3]);

    const auto kv = kv_view<pagedkv::Space::host>(pool.data());
    Random random(shape.seed + 2);
    for (int s = 0; s < shape.num_seqs(); ++s) {
      for (int key = 0; key < kv_len[size(s)]; ++key) {
        const int block = block_ids[size(s) * size(max_blocks_per_seq) + size(key / shape.block_size)];
        for (int head = 0; head < shape.kv_heads; ++head) {
          KV* k = kv.k.at(block, head, key % shape.block_size, 0);
          KV* v = kv.v.at(block, head, key % shape.block_size, 0);
          for (int d = 0; d < shape.head_dim; ++d) k[d] = pagedkv::from_float<KV>(random.real(1.f));
          for (int d = 0; d < shape.head_dim_v; ++d) v[d] = pagedkv::from_float<KV>(random.real(1.f));
        }
      }
    }
  }
};

}  // namespace pagedkv_test
