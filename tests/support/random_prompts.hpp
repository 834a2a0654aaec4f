// Random batches for prefill: lengths about the edges of its tiles and of blocks, any group of heads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "support/problem_generator.hpp"
#include "support/random.hpp"

namespace pagedkv_test {

/// Blocks that TMA lifts, seven times in eight; up to 4 sequences of up to 1,100 keys and 300 queries, but in all no
/// more than `max_products` products of a query and a key.
inline ProblemShape random_prompts(std::uint64_t seed, int head_dim, std::int64_t max_products) {
  Random random(seed);
  ProblemShape shape;
  shape.seed = seed;
  shape.head_dim = shape.head_dim_v = head_dim;
  shape.block_size = random.one_in(8) ? random.pick({1, 7, 19}) : random.pick({8, 16, 16, 24, 32, 64, 128, 1024});
  shape.group_size = random.pick({1, 1, 2, 3, 4, 4, 5, 6, 8, 12, 16, 32});
  shape.kv_heads = random.between(1, shape.group_size > 6 ? 1 : 3);
  shape.order = static_cast<PoolOrder>(random.between(0, 2));
  shape.spare_tokens = random.one_in(4) ? random.between(1, 3) : 0;
  const auto about = [&](int edge, int times) { return edge * random.between(1, times) + random.between(-1, 1); };
  for (int s = random.between(1, 4); s > 0; --s) {
    const int kv_len = random.one_in(10)  ? random.pick({0, 1})
                       : random.one_in(3) ? about(random.pick({80, 112, 128}), 4)
                       : random.one_in(2) ? about(shape.block_size, std::max(1, 512 / shape.block_size))
                                          : random.between(0, 600);
    int q_len = random.one_in(8)   ? 0
                : random.one_in(8) ? 1
                : random.one_in(3) ? about(random.pick({8, 12, 16, 24, 32, 48, 64, 96, 128}), 2)
                : random.one_in(8) ? kv_len + random.between(1, 40)  // more queries than keys
                : random.one_in(3) ? kv_len
                                   : random.between(0, kv_len);
    const std::int64_t affordable = max_products / (std::int64_t{shape.q_heads()} * (kv_len + 1));
    q_len = static_cast<int>(std::clamp<std::int64_t>(q_len, 0, std::min<std::int64_t>(300, affordable)));
    max_products -= std::int64_t{q_len} * kv_len * shape.q_heads();
    shape.kv_len.push_back(std::max(0, kv_len));
    shape.q_len.push_back(q_len);
  }
  return shape;
}

}  // namespace pagedkv_test
