// Byte-pair encoding with a heap of candidate merges over a linked list of tokens.
#include "engine/text/bpe.hpp"

#include <cstddef>
#include <limits>
#include <queue>
#include <tuple>

namespace engine {
namespace {

using Symbols = std::array<std::string, 256>;

Symbols make_symbols() {
  Symbols symbols;
  unsigned next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    const unsigned code = printable ? byte : next++;
    if (code >= 0x80) symbols[byte] += static_cast<char>(0xc0u | (code >> 6));
    symbols[byte] += static_cast<char>(code < 0x80 ? code : 0x80u | (code & 0x3fu));
  }
  return symbols;
}

const Symbols& symbols() {
  static const Symbols table = make_symbols();
  return table;
}

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return (std::uint64_t{static_cast<std::uint32_t>(left)} << 32) | static_cast<std::uint32_t>(right);
}

constexpr std::size_t nowhere = std::numeric_limits<std::size_t>::max();

/// A token of the word being merged. The right half of a merge stays in the array as `gone`.
struct Node {
  std::int32_t id;
  std::size_t previous;
  std::size_t next;
};
constexpr std::int32_t gone = -1;

struct Candidate {
  std::int32_t rank;
  std::size_t left;
  friend bool operator>(const Candidate& a, const Candidate& b) {
    return std::tie(a.rank, a.left) > std::tie(b.rank, b.left);
  }
};

}  // namespace

std::string_view symbol_of(unsigned char byte) { return symbols()[byte]; }

std::string bytes_of(std::string_view token) {
  static const auto byte_of = [] {
    std::unordered_map<std::string_view, char> map;
    for (unsigned byte = 0; byte < 256; ++byte) map.emplace(symbols()[byte], static_cast<char>(byte));
    return map;
  }();
  std::string bytes;
  for (std::size_t i = 0; i < token.size();) {
    const std::size_t length = static_cast<unsigned char>(token[i]) < 0x80 ? 1 : 2;
    const auto symbol = byte_of.find(token.substr(i, length));
    if (symbol == byte_of.end()) return std::string(token);
    bytes += symbol->second;
    i += length;
  }
  return bytes;
}

std::string spelling_of(std::string_view bytes) {
  std::string token;
  for (const char byte : bytes) token += symbol_of(static_cast<unsigned char>(byte));
  return token;
}

void Bpe::add_merge(std::int32_t left, std::int32_t right, std::int32_t merged) {
  merges_.insert_or_assign(key_of(left, right), Merge{num_ranks_++, merged});
}

const Bpe::Merge* Bpe::find_merge(std::int32_t left, std::int32_t right) const {
  const auto merge = merges_.find(key_of(left, right));
  return merge == merges_.end() ? nullptr : &merge->second;
}

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& ids) const {
  std::vector<Node> nodes;
  nodes.reserve(word.size());
  for (const char byte : word) {
    const std::int32_t id = byte_ids_[static_cast<unsigned char>(byte)];
    if (id == no_token) continue;
    const std::size_t i = nodes.size();
    nodes.push_back({.id = id, .previous = i == 0 ? nowhere : i - 1, .next = i + 1});
  }
  if (nodes.empty()) return;
  nodes.back().next = nowhere;

  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto propose = [&](std::size_t left) {
    if (left == nowhere || nodes[left].next == nowhere) return;
    if (const Merge* merge = find_merge(nodes[left].id, nodes[nodes[left].next].id))
      candidates.push({merge->rank, left});
  };
  for (std::size_t i = 0; i < nodes.size(); ++i) propose(i);

  while (!candidates.empty()) {
    const auto [rank, at] = candidates.top();
    candidates.pop();
    Node& left = nodes[at];
    if (left.id == gone || left.next == nowhere) continue;
    Node& right = nodes[left.next];
    const Merge* merge = find_merge(left.id, right.id);
    if (merge == nullptr || merge->rank != rank) continue;  // a neighbour has merged since this was proposed
    left.id = merge->id;
    left.next = right.next;
    right.id = gone;
    if (left.next != nowhere) nodes[left.next].previous = at;
    propose(left.previous);
    propose(at);
  }

  for (const Node& node : nodes)
    if (node.id != gone) ids.push_back(node.id);
}

}  // namespace engine
