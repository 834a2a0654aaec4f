// Fuzz target: bytes become operations on the cache, with the naive oracle beside them. With libFuzzer, from the root:
//
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -DPAGEDKV_LIBFUZZER -include tests/support/assert.hpp
//     -Iinclude -Itests tests/fuzz/cache_fuzz.cpp -o cache_fuzz && ./cache_fuzz corpus
//
// Without it the program has a main of its own: `cache_fuzz FILE...` replays inputs, `cache_fuzz --runs N [--seed S]`
// makes them up and mutates those that reach a state which no earlier one reached, `--keep FOLDER` writes these down.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "cache/cache_oracle.hpp"
#include "cache/operations.hpp"
#include "pagedkv/cache/eviction_lfu.hpp"
#include "pagedkv/cache/eviction_priority.hpp"
#include "pagedkv/cache/eviction_s3fifo.hpp"
#include "support/random.hpp"

namespace {

using namespace pagedkv_test;
using Bytes = std::vector<std::uint8_t>;

constexpr std::size_t header_size = 3;  // pool, block size, policy
constexpr std::size_t operation_size = 6;

struct Input {
  Scenario scenario;
  unsigned policy;
};

/// Every input is a scenario: six bytes an operation, and what is left over is ignored.
Input decode(std::span<const std::uint8_t> bytes) {
  Input input{.scenario = {.num_blocks = 4 + bytes[0] % 29, .block_size = 1 + bytes[1] % 8, .operations = {}},
              .policy = bytes[2] % 4u};
  for (bytes = bytes.subspan(header_size); bytes.size() >= operation_size; bytes = bytes.subspan(operation_size))
    input.scenario.operations.push_back({.kind = static_cast<Kind>(bytes[0] % num_kinds),
                                         .sequence = bytes[1] % 8u,
                                         .other = bytes[1] / 8u,
                                         .amount = bytes[2] + 256u * bytes[3],
                                         .seed = bytes[4] + 256u * bytes[5]});
  return input;
}

/// The state in the end; ends the program where a promise is broken.
template <class Eviction>
std::uint64_t run(const Scenario& scenario) {
  try {
    CacheOracle<BasicPrefixCache<Eviction>> oracle{scenario.num_blocks, scenario.block_size};
    for (const Operation& operation : scenario.operations) oracle.run(operation);
    return oracle.state_hash();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n%s", error.what(), as_code(scenario).c_str());
    std::abort();
  }
}

std::uint64_t run(std::span<const std::uint8_t> bytes) {
  if (bytes.size() < header_size) return 0;
  const Input input = decode(bytes);
  switch (input.policy) {
    case 0:
      return run<LruEviction>(input.scenario);
    case 1:
      return run<LfuEviction>(input.scenario);
    case 2:
      return run<S3FifoEviction>(input.scenario);
    default:
      return run<PriorityEviction>(input.scenario);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  run({data, size});
  return 0;
}

#if !defined(PAGEDKV_LIBFUZZER)

namespace {

constexpr std::size_t max_operations = 200;

Bytes random_input(Random& random) {
  Bytes bytes(header_size + operation_size * static_cast<std::size_t>(random.between(1, 60)));
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random.next());
  return bytes;
}

/// Changes some bytes, and often repeats, removes or inserts operations.
Bytes mutated(Bytes bytes, const Bytes& other, Random& random) {
  const auto operation = [&random](const Bytes& of) {
    const int count = static_cast<int>((of.size() - header_size) / operation_size);
    return static_cast<std::ptrdiff_t>(header_size +
                                       operation_size * static_cast<std::size_t>(random.between(0, count)));
  };
  for (int i = random.between(1, 4); i > 0; --i) {
    const auto at = operation(bytes);
    const auto from = operation(other), to = operation(other);
    switch (random.between(0, 3)) {
      case 0:
        bytes[static_cast<std::size_t>(random.between(0, static_cast<int>(bytes.size()) - 1))] =
            static_cast<std::uint8_t>(random.next());
        break;
      case 1:
        bytes.insert(bytes.begin() + at, other.begin() + std::min(from, to), other.begin() + std::max(from, to));
        break;
      case 2:
        bytes.erase(bytes.begin() + std::min(at, operation(bytes)), bytes.begin() + at);
        break;
      default:
        for (std::size_t b = 0; b < operation_size; ++b)
          bytes.insert(bytes.begin() + at, static_cast<std::uint8_t>(random.next()));
    }
  }
  bytes.resize(std::min(bytes.size(), header_size + operation_size * max_operations));
  return bytes;
}

int explore(int num_runs, std::uint64_t seed, const std::string& folder) {
  Random random{seed};
  std::vector<Bytes> corpus{random_input(random)};
  std::unordered_set<std::uint64_t> seen;
  for (int i = 0; i < num_runs; ++i) {
    const auto pick = [&]() -> const Bytes& {
      return corpus[static_cast<std::size_t>(random.between(0, static_cast<int>(corpus.size()) - 1))];
    };
    const Bytes input = random.one_in(4) ? random_input(random) : mutated(pick(), pick(), random);
    if (!seen.insert(run(input)).second) continue;
    corpus.push_back(input);
    if (folder.empty()) continue;
    std::ofstream file{folder + "/" + std::to_string(i), std::ios::binary};
    file.write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
  }
  std::printf("%d runs, %zu different last states\n", num_runs, seen.size());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  int num_runs = 0;
  std::uint64_t seed = 1;
  std::string folder;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--runs" && i + 1 < argc) {
      num_runs = std::atoi(argv[++i]);
    } else if (argument == "--seed" && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (argument == "--keep" && i + 1 < argc) {
      folder = argv[++i];
    } else {
      std::ifstream file{argv[i], std::ios::binary};
      if (!file) return std::fprintf(stderr, "cannot read %s\n", argv[i]), 2;
      const Bytes input{std::istreambuf_iterator<char>(file), {}};
      run(input);
    }
  }
  return num_runs > 0 ? explore(num_runs, seed, folder) : 0;
}

#endif
