// Failures that paged caches elsewhere have had, at the seam between allocator and scheduler, each as a named test.
#include <doctest/doctest.h>

#include <vector>

#include "cache/tokens.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/prefix_cache.hpp"

using namespace pagedkv;

namespace {

template <class Cache>
Admitted serve(Cache& cache, const Tokens& tokens, Sequence& sequence, StepPlan& step) {
  const Admission admitted = cache.admit(tokens, sequence, step);
  REQUIRE(admitted);
  step.commit();
  cache.publish(tokens, sequence);
  return *admitted;
}

}  // namespace

TEST_CASE("preempted and readmitted: the tokens to compute are counted after the hit, so the table is never overrun") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  PrefixCache cache{blocks};
  StepPlan step;
  BatchTables tables{{.max_seqs = 1, .max_blocks_per_seq = 8, .block_size = 4}};
  Sequence s{blocks};
  const Tokens tokens = iota(22);
  serve(cache, tokens, s, step);
  s.truncate(0);  // preempted
  const Admission again = cache.admit(tokens, s, step);
  REQUIRE(again);
  CHECK(again->cached == 20);
  CHECK(step.num_rows() == again->to_compute);
  CHECK(again->cached + again->to_compute == s.size());
  tables.add(s, again->to_compute);
  CHECK(tables.num_tokens() == step.num_rows());
  step.commit();
}

TEST_CASE("fully cached prompt of whole blocks: there is still a token to compute, and no shared block is written") {
  for (const int num_blocks : {1, 2, 5}) {
    BlockAllocator blocks{{.num_blocks = 16, .block_size = 4}};
    PrefixCache cache{blocks};
    StepPlan step;
    Sequence first{blocks}, second{blocks};
    const Tokens tokens = iota(4 * num_blocks);
    serve(cache, tokens, first, step);
    const Admission admitted = cache.admit(tokens, second, step);
    REQUIRE(admitted);
    CHECK(admitted->to_compute >= 1);
    for (const Slot slot : step.slots()) CHECK(blocks.ref_count(BlockId{static_cast<std::int32_t>(slot / 4)}) == 1);
    step.commit();
  }
}

TEST_CASE("two twins in one batch: the second does not read what the first has yet to write") {
  BlockAllocator blocks{{.num_blocks = 16, .block_size = 4}};
  PrefixCache cache{blocks};
  StepPlan step;
  Sequence first{blocks}, twin{blocks};
  REQUIRE(cache.admit(iota(9), first, step));
  cache.publish(iota(9), first);
  const Admission admitted = cache.admit(iota(9), twin, step);
  REQUIRE(admitted);
  CHECK(admitted->cached == 0);
  CHECK(twin.blocks()[0] != first.blocks()[0]);
  step.commit();
}

TEST_CASE("hash collision of two prefixes with an equal last block: tokens decide") {
  struct LastTokenHash {
    std::uint64_t operator()(std::uint64_t, std::span<const std::int32_t> tokens, std::string_view) const {
      return tokens.empty() ? 0 : static_cast<std::uint64_t>(tokens.back());
    }
  };
  BlockAllocator blocks{{.num_blocks = 16, .block_size = 4}};
  BasicPrefixCache<LruEviction, LastTokenHash> cache{blocks};
  StepPlan step;
  Sequence first{blocks}, second{blocks};
  Tokens tokens = iota(9);
  serve(cache, tokens, first, step);
  tokens[1] = 77;  // the same hashes, another first block, an equal second one
  CHECK(serve(cache, tokens, second, step).cached == 0);
}

TEST_CASE("block table at the longest prompt: no column is missing, none of a wider batch remains") {
  BlockAllocator blocks{{.num_blocks = 16, .block_size = 4}};
  StepPlan step;
  Sequence longest{blocks}, shorter{blocks};
  REQUIRE(longest.append(16, step));
  REQUIRE(shorter.append(3, step));
  step.commit();
  BatchTables tables{{.max_seqs = 2, .max_blocks_per_seq = 4, .block_size = 4}};
  tables.add(longest, 1);
  tables.clear();
  tables.add(shorter, 1);
  for (int i = 1; i < 4; ++i) CHECK(tables.view().block_ids(0, i) == -1);
}

TEST_CASE("request larger than the pool: an answer, not a wait") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 4}};
  PrefixCache cache{blocks};
  StepPlan step;
  Sequence s{blocks};
  CHECK(cache.admit(iota(16), s, step));
  s.truncate(0);
  CHECK(cache.admit(iota(17), s, step).refusal() == Refusal::never);
}

TEST_CASE("waiting at the head of the queue: retries change nothing, however many") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 4}};
  PrefixCache cache{blocks};
  StepPlan step;
  Sequence running{blocks}, waiting{blocks};
  serve(cache, iota(12), running, step);
  const auto before = cache.state_hash();
  for (int i = 0; i < 100; ++i) CHECK_FALSE(cache.admit(iota(12, 50), waiting, step));
  CHECK(cache.state_hash() == before);
}

TEST_CASE("the newest duplicate does not hide the older copy") {
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  PrefixCache cache{blocks};
  StepPlan step;
  Sequence first{blocks}, twin{blocks}, third{blocks};
  REQUIRE(cache.admit(iota(5), first, step));
  REQUIRE(cache.admit(iota(5), twin, step));
  step.commit();
  cache.publish(iota(5), first);
  cache.publish(iota(5), twin);
  CHECK(serve(cache, iota(5), third, step).cached == 4);
  CHECK(third.blocks()[0] == first.blocks()[0]);
}

TEST_CASE("copy-on-write without a free block: the source keeps its owners") {
  BlockAllocator blocks{{.num_blocks = 1, .block_size = 4}};
  StepPlan step;
  Sequence parent{blocks};
  REQUIRE(parent.append(2, step));
  step.commit();
  Sequence child = parent.fork();
  const auto before = blocks.state_hash();
  CHECK_FALSE(child.append(1, step));
  CHECK(blocks.state_hash() == before);
  parent.truncate(0);
  CHECK(blocks.ref_count(child.blocks()[0]) == 1);
  CHECK(child.append(1, step));
  step.commit();
}

TEST_CASE("one block twice in one free call is one error, not a corrupt free list") {
  BlockAllocator blocks{{.num_blocks = 4, .block_size = 4}};
  std::vector<BlockId> ids(2);
  REQUIRE(blocks.allocate(ids));
  CHECK_THROWS_AS(blocks.release(std::vector{ids[0], ids[1], ids[1]}), InvalidArgument);
  blocks.check_invariants();
  CHECK(blocks.num_used() == 2);
  blocks.release(ids);
}
