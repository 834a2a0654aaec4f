// CachedPrompts: pools full of cached prompts, of this library and of the rival, for the prefix cache's benchmarks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "pagedkv/cache/prefix_cache.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "support/afternoon.hpp"
#include "support/pools.hpp"

namespace bench {

using pagedkv::BlockId, pagedkv::PrefixCache, pagedkv::Sequence, pagedkv::StepPlan;

inline constexpr int block_size = 16;
using Tokens = std::vector<std::int32_t>;

/// A prompt is known by its seed: all of its blocks differ from those of others.
inline void write_prompt(std::uint64_t seed, Tokens& tokens) {
  std::uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15u;
  for (std::int32_t& token : tokens) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    token = static_cast<std::int32_t>(x >> 48);
  }
}

/// The library.
struct CachedPool {
  using Block = BlockId;
  using Table = std::optional<Sequence>;
  CachedPool(int num_blocks, Order order) : blocks(num_blocks, block_size, order), cache(blocks) {}
  void admit(std::span<const std::int32_t> tokens, Table& table) {
    table.emplace(blocks);
    must(static_cast<bool>(cache.admit(tokens, *table, step)));
  }
  void publish(std::span<const std::int32_t> tokens, Table& table) {
    step.commit();
    cache.publish(tokens, *table);
  }
  void drop(Table& table) {
    step.commit();
    table.reset();
    blocks.drain();
  }
  void blocks_of(const Table& table, std::vector<BlockId>& out) const {
    for (const BlockId id : table->blocks()) out.push_back(id);
  }
  int find(std::span<const std::int32_t> tokens) const { return cache.num_cached_tokens(tokens); }
  void retain(std::span<const BlockId> ids) { blocks.retain(ids); }
  void release(std::span<const BlockId> ids) { blocks.release(ids); }
  void take(std::vector<BlockId>& out, int count) {
    out.resize(static_cast<std::size_t>(count));
    must(blocks.allocate(out));
  }
  int num_free() const { return blocks.num_free(); }
  Pool blocks;
  PrefixCache cache;
  StepPlan step;
};

/// The rival, by the same names.
struct AfternoonPool {
  using Block = Afternoon::BlockPtr;
  using Table = Afternoon::Sequence;
  AfternoonPool(int num_blocks, Order order) : blocks(ids_in(order, num_blocks), block_size) {}
  void admit(std::span<const std::int32_t> tokens, Table& table) {
    slots.clear();
    must(blocks.admit(tokens, table, slots));
  }
  void publish(std::span<const std::int32_t> tokens, const Table& table) { blocks.publish(tokens, table); }
  void drop(Table& table) { blocks.truncate(table, 0); }
  void blocks_of(const Table& table, std::vector<Block>& out) const {
    out.insert(out.end(), table.table.begin(), table.table.end());
  }
  int find(std::span<const std::int32_t> tokens) const {
    std::vector<Block> hits;
    blocks.match(tokens.first(tokens.size() - 1), hits);
    return static_cast<int>(hits.size()) * block_size;
  }
  void retain(std::span<const Block> held) {
    for (const Block& block : held) blocks.retain(block);
  }
  void release(std::span<const Block> held) {
    for (std::size_t i = held.size(); i-- > 0;) blocks.release(held[i]);
  }
  void take(std::vector<Block>& out, int count) {
    out.clear();
    must(blocks.allocate(count, out));
  }
  int num_free() const { return blocks.num_free(); }
  Afternoon blocks;
  std::vector<std::int64_t> slots;
};

inline constexpr int prompt_blocks = 64;

/// A pool of idle prompts of 64 blocks; some of them are drawn at a time.
template <class P>
struct Prompts {
  // Unless `to_evict`, room is left for the block behind a prompt.
  Prompts(int num_blocks, Order order, bool to_evict) : pool(num_blocks, order) {
    const int count = (num_blocks - (to_evict ? 0 : 1)) / prompt_blocks;
    for (int i = 0; i < count; ++i) add();
    if (to_evict) pool.take(rest, pool.num_free());
    indices.resize(static_cast<std::size_t>(count));
    std::iota(indices.begin(), indices.end(), 0);
  }
  ~Prompts() { pool.release(rest); }

  // Computes and publishes a prompt that there was not yet.
  void add() {
    Tokens tokens(prompt_blocks * block_size);
    write_prompt(blocks_of.size(), tokens);
    typename P::Table table;
    pool.admit(tokens, table);
    pool.publish(tokens, table);
    pool.blocks_of(table, blocks_of.emplace_back());
    pool.drop(table);
  }

  void draw() {
    for (std::size_t i = 0; i < num_drawn(); ++i) std::swap(indices[i], indices[i + random() % (indices.size() - i)]);
    questions.resize(num_drawn());
    for (std::size_t i = 0; i < num_drawn(); ++i) {
      questions[i].resize(prompt_blocks * block_size + 1);  // the last token is always computed
      write_prompt(indices[i], questions[i]);
    }
  }
  std::size_t num_drawn() const { return std::min<std::size_t>(32, indices.size() / 2); }
  double num_drawn_blocks() const { return static_cast<double>(num_drawn() * prompt_blocks); }

  void find() {
    for (const Tokens& tokens : questions) must(pool.find(tokens) == prompt_blocks * block_size);
  }
  void retain() {
    for (std::size_t i = 0; i < num_drawn(); ++i) pool.retain(blocks_of[indices[i]]);
    held = true;
  }
  void release() {
    if (!held) return;
    for (std::size_t i = 0; i < num_drawn(); ++i) pool.release(blocks_of[indices[i]]);
    held = false;
  }
  // Makes room for as many prompts as are drawn elsewhere: those that nobody used for the longest time go.
  void evict() {
    taken.resize(num_drawn());
    for (auto& blocks : taken) pool.take(blocks, prompt_blocks);
  }
  void refill() {
    for (auto& blocks : taken) {
      pool.release(blocks);
      add();
    }
    taken.clear();
  }

  P pool;
  std::vector<std::vector<typename P::Block>> blocks_of;  // by prompt
  std::vector<std::uint64_t> indices;                     // of prompts; those in front are drawn
  std::vector<Tokens> questions;
  std::vector<typename P::Block> rest;  // the free blocks of a pool to evict from
  std::vector<std::vector<typename P::Block>> taken;
  bool held = false;
  std::mt19937 random{1};
};

}  // namespace bench
