// Attention over a paged cache on the CPU: a mixed batch of a prompt, a continuation and a single token, under three rules.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cpu/attend.hpp"
#include "pagedkv/cpu/reference.hpp"
#include "pagedkv/cpu/step.hpp"
#include "pagedkv/storage/kv_pool.hpp"

using namespace pagedkv;

namespace {

constexpr int q_heads = 8, kv_heads = 2, head_dim = 64;
using Problem = AttentionProblem<Space::host, float, bf16>;  // q and out in float, the cache in bf16

std::vector<float> random_values(int count) {
  static std::mt19937 generator{7};
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = static_cast<float>(generator() % 2001) / 1000.f - 1.f;
  return values;
}

// [your-rule]
struct SinkEveryFourth {  // a rule of your own: plain struct, no macro, no base class
  float cap;
  PAGEDKV_HD float logit(float x, Position) const { return cap * tanh(x / cap); }
  PAGEDKV_HD bool visible(Position p) const { return p.key < 4 || (p.query - p.key) % 4 == 0; }
  PAGEDKV_HD KeyRanges keys(int, int num_keys) const { return {{0, num_keys}}; }
};
static_assert(AttentionVariant<SinkEveryFourth>);
// [your-rule]

template <class V>
void compare(const char* name, Problem problem, V variant) {
  std::vector<float> reference(static_cast<std::size_t>(problem.num_tokens() * q_heads * head_dim));
  cpu::attend(problem, variant);
  const auto out = problem.out;
  problem.out = dense_view(reference.data(), {problem.num_tokens(), q_heads, head_dim});
  cpu::attend_reference(problem, variant);  // slow, in double: what the library means
  float worst = 0;
  for (std::size_t i = 0; i < reference.size(); ++i) worst = std::max(worst, std::abs(out.data[i] - reference[i]));
  std::printf("%-22s %s\n", name, worst < 1e-5f ? "agrees with the reference" : "IS WRONG");
}

}  // namespace

int main() {
  BlockAllocator blocks{{.num_blocks = 64, .block_size = 16}};
  KvPool<bf16> pool{{.num_blocks = 64, .kv_heads = kv_heads, .block_size = 16, .head_dim = head_dim}};
  StepPlan step;

  // [batch]
  Sequence prompt{blocks}, chunk{blocks}, decoding{blocks};
  if (!chunk.append(30, step) || !decoding.append(200, step)) return 1;  // what these two cached before
  const auto store = [&] {
    const auto k = random_values(step.num_rows() * kv_heads * head_dim),
               v = random_values(step.num_rows() * kv_heads * head_dim);
    cpu::copy_blocks(step, pool);
    cpu::store_kv(step, pool.layer(0), dense_view(k.data(), {step.num_rows(), kv_heads, head_dim}),
                  dense_view(v.data(), {step.num_rows(), kv_heads, head_dim}));
    step.commit();
  };
  store();
  if (!prompt.append(37, step) || !chunk.append(20, step) || !decoding.append(1, step)) return 1;
  store();

  BatchTables tables{{.max_seqs = 3, .max_blocks_per_seq = 16, .block_size = 16}};
  tables.add(prompt, 37);   // prefill: all of its tokens are queries
  tables.add(chunk, 20);    // a chunk that continues a cached prefix
  tables.add(decoding, 1);  // one new token

  const auto q = random_values(tables.num_tokens() * q_heads * head_dim);
  std::vector<float> out(q.size()), lse(static_cast<std::size_t>(tables.num_tokens() * q_heads));
  const Problem problem{.q = dense_view(q.data(), {tables.num_tokens(), q_heads, head_dim}),
                        .kv = pool.layer(0),
                        .tables = tables.view(),
                        .out = dense_view(out.data(), {tables.num_tokens(), q_heads, head_dim}),
                        .lse = dense_view(lse.data(), {tables.num_tokens(), q_heads}),
                        .scale = 1 / std::sqrt(float{head_dim})};
  cpu::attend(problem, Causal{});
  // [batch]
  std::printf("%s\n", cpu::explain(problem).c_str());

  compare("Causal", problem, Causal{});
  compare("sliding window of 32", problem, chain(SlidingWindow{.window = 32, .sink_tokens = 4}, SoftCap{30.f}));
  compare("your own rule", problem, chain(Causal{}, SinkEveryFourth{.cap = 50.f}));
}
