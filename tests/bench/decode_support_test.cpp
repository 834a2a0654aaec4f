// What the decode benchmarks compute on the host: spreads, batches, rotating block tables, the peers' limits.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/support/lengths.hpp"
#include "bench/support/peers.hpp"
#include "bench/support/statistics.hpp"

namespace {

using namespace bench;

constexpr const char* peers_file = PAGEDKV_SOURCE_DIR "/bench/peers/h200_decode.csv";

TEST_CASE("A quantile lies between its neighbours, whatever the order of the samples") {
  std::vector<double> samples = {5, 1, 4, 2, 3};
  CHECK(quantile(samples, 0) == 1);
  CHECK(quantile(samples, 1) == 5);
  CHECK(quantile(samples, .5) == 3);
  CHECK(quantile(samples, .1) == doctest::Approx(1.4));
  std::vector<double> one = {7};
  CHECK(quantile(one, .9) == 7);
  const Spread spread = spread_of({40, 10, 30, 20});
  CHECK(spread.median == 25);
  CHECK(spread.p10 == doctest::Approx(13));
  CHECK(spread.p90 == doctest::Approx(37));
}

TEST_CASE("The mixed batches have as many keys as those on which the peers were measured") {
  std::ifstream csv(peers_file);
  const auto mixed = mixed_lengths();
  std::size_t found = 0;
  for (std::string line; std::getline(csv, line);)
    for (const Lengths& lengths : mixed)
      if (const std::string start = "32,8," + lengths.name + ","; line.starts_with(start)) {
        const double bytes = static_cast<double>(lengths.total()) * 8 * 128 * 2 * 2;
        CHECK(std::stod(line.substr(start.size())) == doctest::Approx(bytes / 1e6).epsilon(.001));
        ++found;
      }
  CHECK(found == mixed.size());
}

TEST_CASE("A batch with one long sequence has it where it should be") {
  const Lengths lengths = one_long(4, 10, 2, 99);
  CHECK(lengths.name == "3x10+1x99");
  CHECK(lengths.kv_len == std::vector<std::int32_t>{10, 10, 99, 10});
  CHECK(lengths.longest() == 99);
  CHECK(lengths.total() == 129);
}

TEST_CASE("Sets share no block while there are enough, and start again behind the last") {
  const auto numbers = shuffled_sets(3, 20, 64, 1);
  CHECK(std::set(numbers.begin(), numbers.end()).size() == 60);
  CHECK(*std::min_element(numbers.begin(), numbers.end()) >= 0);
  CHECK(*std::max_element(numbers.begin(), numbers.end()) < 64);
  CHECK_FALSE(std::is_sorted(numbers.begin(), numbers.end()));

  const auto twice = shuffled_sets(2, 50, 50, 1);
  CHECK(twice.size() == 100);
  CHECK(std::equal(twice.begin(), twice.begin() + 50, twice.begin() + 50));
  CHECK(std::set(twice.begin(), twice.begin() + 50).size() == 50);
}

TEST_CASE("Calls rotate over a gigabyte, at least twice and at most 512 times") {
  CHECK(num_rotating_sets(1) == 512);
  CHECK(num_rotating_sets(16'777'216) == 60);
  CHECK(num_rotating_sets(500'000'000) == 2);
  CHECK(num_rotating_sets(34'359'738'368) == 2);
}

TEST_CASE("A peer's limit is its time in floors and two per cent; below 64 MB more is wished for") {
  std::istringstream csv("# comment\nheader\n32,8,1x1024,4.2,2.5,10,XQA,7\n64,8,lognormal8,400,100,110,FA3,\n");
  const Peers peers(csv);
  const Peer* const small = peers.find(32, 8, "1x1024");
  REQUIRE(small != nullptr);
  CHECK(small->name == "XQA");
  CHECK(Peers::limit(*small) == doctest::Approx(4.08));
  CHECK(Peers::goal(*small, 4.2e6) == doctest::Approx(3.4));
  const Peer* const large = peers.find(64, 8, "lognormal8");
  REQUIRE(large != nullptr);
  CHECK(Peers::goal(*large, 400e6) == Peers::limit(*large));
  CHECK(peers.find(32, 8, "lognormal8") == nullptr);
}

TEST_CASE("A line that is no peer is refused and shown") {
  std::istringstream csv("header\n32,8,1x1024,4.2,fast\n");
  CHECK_THROWS_WITH_AS(Peers{csv}, doctest::Contains("32,8,1x1024,4.2,fast"), std::runtime_error);
}

TEST_CASE("The peers of the H200 cover the benchmark's grid and its mixed batches") {
  std::ifstream csv(peers_file);
  const Peers peers(csv);
  for (const int q_heads : {32, 64}) {
    for (const Lengths& lengths : mixed_lengths()) CHECK(peers.find(q_heads, 8, lengths.name) != nullptr);
    for (const int num_seqs : {1, 8, 32, 128})
      for (const int kv_len : {1024, 4096, 16384, 65536}) {
        const Peer* const peer = peers.find(q_heads, 8, equal_lengths(num_seqs, kv_len).name);
        REQUIRE(peer != nullptr);
        CHECK(peer->floors() > 1);
      }
  }
}

}  // namespace
