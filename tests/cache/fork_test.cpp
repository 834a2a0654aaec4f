// Forks with real bytes: beams that share blocks hold what deep copies hold, for any sequence of parents.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pagedkv/cache/sequence.hpp"

using namespace pagedkv;

namespace {

constexpr int row_bytes = 24;  // the K and V of one token

/// A pool of bytes and the two things a back end does with a plan.
struct Bytes {
  Bytes(int num_blocks, int block_size)
      : block_bytes(block_size * row_bytes), data(static_cast<std::size_t>(num_blocks * block_bytes), '?') {}

  char* row(Slot slot) { return data.data() + slot * row_bytes; }

  void execute(const StepPlan& step, const std::vector<std::string>& rows) {
    std::set<BlockId> destinations;
    for (const BlockCopy& copy : step.copies()) REQUIRE(destinations.insert(copy.destination).second);
    for (const BlockCopy& copy : step.copies()) REQUIRE_FALSE(destinations.contains(copy.source));
    for (const BlockCopy& copy : step.copies())
      std::memcpy(data.data() + to_index(copy.destination) * block_bytes,
                  data.data() + to_index(copy.source) * block_bytes,
                  static_cast<std::size_t>(copy.num_rows * row_bytes));
    REQUIRE(std::ssize(rows) == step.num_rows());
    for (std::size_t i = 0; i < rows.size(); ++i)
      if (step.slots()[i] != dead_slot) std::memcpy(row(step.slots()[i]), rows[i].data(), row_bytes);
  }

  std::string read(const Sequence& sequence, int first = 0) {
    std::string all;
    for (int i = first; i < sequence.size(); ++i) all.append(row(sequence.table().slot(i)), row_bytes);
    return all;
  }

  int block_bytes;
  std::vector<char> data;
};

std::string random_row(std::mt19937& random) {
  std::string row(row_bytes, ' ');
  std::ranges::generate(row, [&random] { return static_cast<char>('a' + random() % 26); });
  return row;
}

struct Beam {
  Sequence sequence;
  std::string deep_copy;
};

/// How many blocks beams need that share what they can: as many as there are different histories of a block. For beams
/// that end in rows of their own.
int num_histories(const std::vector<Beam>& beams, int block_size) {
  std::set<std::string_view> histories;
  for (const Beam& beam : beams)
    for (int end = block_size; end - block_size < beam.sequence.size(); end += block_size)
      histories.insert(std::string_view(beam.deep_copy).substr(0, static_cast<std::size_t>(end * row_bytes)));
  return static_cast<int>(histories.size());
}

}  // namespace

TEST_CASE("four beams over 64 steps with random parents hold what deep copies hold") {
  for (unsigned seed = 0; seed < 100; ++seed) {
    std::mt19937 random{seed};
    const int block_size = 1 + static_cast<int>(random() % 9);
    constexpr int num_blocks = 256;
    const int prompt_len = static_cast<int>(random() % 20) + 1;
    BlockAllocator blocks{{.num_blocks = num_blocks, .block_size = block_size}};
    Bytes bytes{num_blocks, block_size};
    StepPlan step;
    std::vector<Beam> beams;
    beams.push_back({Sequence{blocks}, {}});
    std::vector<std::string> rows;
    REQUIRE(beams[0].sequence.append(prompt_len, step));
    for (int i = 0; i < prompt_len; ++i) rows.push_back(random_row(random));
    for (const std::string& row : rows) beams[0].deep_copy += row;
    bytes.execute(step, rows);
    step.commit();

    for (int i = 0; i < 64; ++i) {
      std::vector<Beam> next;
      const bool collapse = random() % 8 == 0;  // all beams follow one parent
      const auto only_parent = random() % beams.size();
      for (int child = 0; child < 4; ++child) {
        const Beam& parent = beams[collapse ? only_parent : random() % beams.size()];
        next.push_back({parent.sequence.fork(), parent.deep_copy});
      }
      beams = std::move(next);  // losers die before the survivors append
      rows.clear();
      for (Beam& beam : beams) {
        const int num_tokens = 1 + static_cast<int>(random() % 2);
        REQUIRE(beam.sequence.append(num_tokens, step));
        for (int token = 0; token < num_tokens; ++token) {
          rows.push_back(random_row(random));
          beam.deep_copy += rows.back();
        }
      }
      CHECK(step.copies().size() < beams.size());  // of each shared tail one owner writes in place
      bytes.execute(step, rows);
      step.commit();
      for (const Beam& beam : beams) REQUIRE(bytes.read(beam.sequence) == beam.deep_copy);
      if (i % 8 == 0) CHECK(blocks.num_used() == num_histories(beams, block_size));
    }
    beams.clear();
    CHECK(blocks.num_free() == num_blocks);
  }
}

TEST_CASE("eight samples share their prompt: blocks are those of the prompt plus eight tails") {
  constexpr int block_size = 16, prompt_len = 100, new_tokens = 20, samples = 8;
  BlockAllocator blocks{{.num_blocks = 64, .block_size = block_size}};
  StepPlan step;
  std::vector<Sequence> all;
  all.emplace_back(blocks);
  REQUIRE(all[0].append(prompt_len, step));
  step.commit();
  while (std::ssize(all) < samples) all.push_back(all[0].fork());
  int num_copies = 0;
  for (int i = 0; i < new_tokens; ++i) {
    for (Sequence& sample : all) REQUIRE(sample.append(1, step));
    num_copies += static_cast<int>(step.copies().size());
    step.commit();
  }
  const int shared = prompt_len / block_size;
  CHECK(num_copies == samples - 1);
  CHECK(blocks.num_used() == shared + samples * (ceil_div(prompt_len + new_tokens, block_size) - shared));
}

TEST_CASE(
    "sequences that are appended to, guessed at, cut, forked, windowed and dropped in any order within a step hold "
    "what deep copies hold") {
  struct Windowed {
    Sequence sequence;
    std::string deep_copy;
    int first = 0;  // no position before is read
  };
  for (unsigned seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    std::mt19937 random{seed};
    const auto between = [&random](int low, int high) {
      return low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
    };
    const int block_size = between(1, 5), num_blocks = between(20, 400);
    BlockAllocator blocks{{.num_blocks = num_blocks, .block_size = block_size}};
    Bytes bytes{num_blocks, block_size};
    StepPlan step;
    std::vector<Windowed> all;
    std::vector<std::string> rows;
    for (int i = 0; i < 300; ++i) {
      CAPTURE(i);
      if (all.empty() || (all.size() < 8 && random() % 20 == 0)) all.push_back({Sequence{blocks}, {}, 0});
      const auto chosen = random() % 2 == 0 ? all.size() - 1 : random() % all.size();  // forks of forks
      auto& [sequence, deep_copy, first] = all[chosen];
      switch (between(0, 11)) {
        case 0:
        case 1:
        case 2:
        case 3:
        case 9: {
          const int count = between(0, random() % 8 == 0 ? 90 : 3);
          const bool as_drafts = sequence.num_drafts() > 0 || random() % 4 == 0;
          if (!(as_drafts ? sequence.reserve(count, step) : sequence.append(count, step))) break;
          for (int token = 0; token < count; ++token) {
            rows.push_back(random_row(random));
            deep_copy += rows.back();
          }
          break;
        }
        case 4: {
          const int size = between(first, sequence.size());
          sequence.truncate(size);
          deep_copy.resize(static_cast<std::size_t>(size * row_bytes));
          break;
        }
        case 5:
        case 6:
          if (all.size() < 8) {
            const int size = sequence.num_committed();
            all.push_back({sequence.fork(), deep_copy.substr(0, static_cast<std::size_t>(size * row_bytes)), first});
          }
          break;
        case 7:
          if (random() % 4 == 0 && sequence.num_committed() >= first) {
            const int position = between(first, sequence.num_committed());
            sequence.release_before(position);
            first = max(first, position / block_size * block_size);
          }
          break;
        case 8:
          if (random() % 2 == 0) all.erase(all.begin() + static_cast<std::ptrdiff_t>(chosen));
          break;
        case 10:
          bytes.execute(step, rows);
          rows.clear();
          step.commit();
          for (Windowed& each : all) {
            REQUIRE(bytes.read(each.sequence, each.first) ==
                    each.deep_copy.substr(static_cast<std::size_t>(each.first * row_bytes)));
            each.sequence.accept(between(0, each.sequence.num_drafts()));
            each.deep_copy.resize(static_cast<std::size_t>(each.sequence.size() * row_bytes));
          }
          break;
        default:
          break;
      }
      blocks.check_invariants();
    }
    all.clear();
    step.commit();
    CHECK(blocks.num_free() == num_blocks);
  }
}
