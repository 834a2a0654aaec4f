// What the prefill benchmark computes on the host: FLOPs, cases, checked rows, the peers' table, ratios.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/prefill_peers.hpp"
#include "bench/support/prefill_shapes.hpp"

namespace {

using namespace bench;

constexpr const char* peers_file = PAGEDKV_SOURCE_DIR "/bench/peers/h200_prefill.csv";

/// Queries times keys that they see, one by one; a query's own key counts half.
double pairs(const PrefillShape& shape) {
  double sum = 0;
  for (int query = 0; query < shape.q_len; ++query)
    sum += shape.causal ? shape.kv_len - shape.q_len + query + .5 : shape.kv_len;
  return sum * shape.num_seqs;
}

TEST_CASE("FLOPs count each visible pair of query and key, the diagonal half") {
  for (const PrefillShape& shape : {PrefillShape{128, true, 32, 8, 4, 4096, 4096},
                                    {128, true, 32, 8, 4, 512, 4096},
                                    {64, false, 16, 16, 2, 1024, 1024},
                                    {256, false, 32, 8, 1, 16, 1024}})
    CHECK(shape.flops() == doctest::Approx(4. * shape.q_heads * shape.head_dim * pairs(shape)).epsilon(1e-12));
  const PrefillShape causal{128, true, 32, 8, 1, 2048, 2048};
  PrefillShape full = causal;
  full.causal = false;
  CHECK(full.flops() == 2 * causal.flops());
}

TEST_CASE("A name says head_dim, mask, heads and lengths, then the blocks") {
  const PrefillShape prompt{128, true, 32, 8, 4, 4096, 4096}, chunk{64, false, 16, 16, 1, 512, 8192};
  CHECK(PrefillCase{"grid", prompt}.name() == "grid/d128/causal/32_8/4x4096/block16");
  CHECK(PrefillCase{"chunked", chunk, 128}.name() == "chunked/d64/full/16_16/1x512_in_8192/block128");
  const PrefillCase one_block{"grid", prompt, PrefillCase::contiguous};
  CHECK(one_block.name() == "grid/d128/causal/32_8/4x4096/contiguous");
  CHECK(one_block.block_size() == 4096);
  CHECK(PrefillCase{"chunked", {64, true, 8, 8, 1, 10, 1000}, PrefillCase::contiguous}.block_size() == 1024);
}

TEST_CASE("No two cases have one name, and the blocks of a shape follow each other, those of 16 first") {
  const std::vector<PrefillCase> cases = prefill_cases();
  std::set<std::string> names;
  for (const PrefillCase& c : cases) CHECK(names.insert(c.name()).second);
  CHECK(prefill_grid().size() == 3 * 3 * 2 * 6);
  CHECK(cases.size() == 3 * prefill_grid().size() + 2 * prefill_chunks().size() + 12);
  for (std::size_t i = 1; i < cases.size(); ++i)
    if (cases[i].blocks != 16) CHECK(cases[i].shape.name() == cases[i - 1].shape.name());
}

TEST_CASE("The grid has 16,384 tokens, and the queries of three sets of any case fit the shared memory") {
  for (const PrefillShape& shape : prefill_grid()) CHECK(shape.num_tokens() == 16384);
  for (const PrefillCase& c : prefill_cases()) {
    CHECK(c.shape.q_elements() <= std::int64_t{16384} * 32 * 256);
    CHECK(c.shape.q_heads % c.shape.kv_heads == 0);
    CHECK(c.shape.q_len <= c.shape.kv_len);
  }
}

TEST_CASE("Chunks rotate over a gigabyte of K and V, at most once a call; the grid over three sets, as its peers did") {
  CHECK(num_prefill_sets({128, true, 32, 8, 1, 16384, 16384}, 24) == 3);
  CHECK(num_prefill_sets({128, true, 32, 8, 1, 512, 16384}, 24) == 15);
  CHECK(num_prefill_sets({128, true, 32, 8, 1, 512, 8192}, 24) == 24);
  CHECK(num_prefill_sets({128, true, 32, 8, 1, 8192, 65536}, 24) == 4);
  for (const PrefillShape& shape : prefill_chunks()) {
    constexpr std::int64_t l2_bytes = 60 << 20;
    const std::int64_t set_bytes = shape.kv_bytes() + 2 * shape.q_elements();
    CHECK(num_prefill_sets(shape, 24) * set_bytes > 4 * l2_bytes);
  }
}

TEST_CASE(
    "A row of each 64 is checked, the first and the last too; fewer where they see many keys, all over the batch") {
  const PrefillShape shape{128, true, 32, 8, 4, 4096, 4096};
  const std::vector<SampledRow> rows = sampled_rows(shape, std::int64_t{1} << 22, 1);
  std::set<std::pair<int, int>> tiles;
  for (const SampledRow& row : rows) {
    CHECK(row.sequence < 4);
    CHECK(row.query < 4096);
    tiles.insert({row.sequence, row.query / 64});
  }
  CHECK(tiles.size() == 256);
  CHECK(rows.front().query == 0);
  CHECK(rows.back().sequence == 3);
  CHECK(rows.back().query == 4095);

  const std::vector<SampledRow> few = sampled_rows(shape, 8 * 4096, 1);
  CHECK(few.size() <= 10);
  for (int sequence = 0; sequence < 4; ++sequence)
    CHECK(std::any_of(few.begin(), few.end(), [&](const SampledRow& row) { return row.sequence == sequence; }));

  const std::vector<SampledRow> tiny = sampled_rows({128, true, 32, 8, 1, 1, 70000}, 1, 1);
  CHECK(tiny.size() == 1);
}

TEST_CASE("The best peer of a kind is found by the names of the columns; empty cells were not measured") {
  std::istringstream csv(
      "# comment\nshape,gemm,fa2,cudnn,fa3_block16,other_block16,fa3_block128\n"
      "a,800,300,400,200,,600\nb,500,,,100\n");
  const PrefillPeers peers(csv);
  CHECK(peers.best_contiguous("a").name == "cudnn");
  CHECK(peers.best_contiguous("a").of_gemm == .5);
  CHECK(peers.best_block16("a").name == "fa3_block16");
  CHECK(peers.best_block16("b").of_gemm == .2);
  CHECK(peers.best_contiguous("b").tflops == 0);
  CHECK(peers.find("a", "fa2").tflops == 300);
  CHECK(peers.find("c", "fa2").tflops == 0);
}

TEST_CASE("A line that is no peer is refused and shown") {
  std::istringstream words("shape,gemm,fa2\na,800,fast\n"), many("shape,gemm,fa2\na,800,1,2\n");
  CHECK_THROWS_WITH_AS(PrefillPeers{words}, doctest::Contains("a,800,fast"), std::runtime_error);
  CHECK_THROWS_WITH_AS(PrefillPeers{many}, doctest::Contains("a,800,1,2"), std::runtime_error);
}

TEST_CASE("The peers of the H200 cover the grid") {
  std::ifstream csv(peers_file);
  const PrefillPeers peers(csv);
  for (const PrefillShape& shape : prefill_grid()) {
    CHECK(peers.best_contiguous(shape.name()).of_gemm > .2);
    CHECK(peers.best_contiguous(shape.name()).of_gemm < 1);
    if (shape.head_dim == 128) CHECK(peers.best_block16(shape.name()).tflops > 0);
  }
  std::size_t found = 0;
  for (const PrefillShape& shape : prefill_chunks()) found += peers.best_block16(shape.name()).tflops > 0;
  CHECK(found == 17);
}

TEST_CASE("A kernel is as fast as a peer if both reach the same share of their GEMMs") {
  const PrefillPeer peer{.name = "cudnn", .tflops = 640, .of_gemm = .8};
  CHECK(peer.times(600. / 750) == doctest::Approx(1));
  CHECK(peer.times(.4) == doctest::Approx(.5));
  CHECK(peer.times(0) == 0);  // without cuBLASLt nothing is compared
  CHECK(PrefillPeer{}.times(.8) == 0);
}

}  // namespace
