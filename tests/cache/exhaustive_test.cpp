// Every sequence of operations up to a depth, with at most 4 blocks and 3 sequences, against the naive oracle.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <string>
#include <vector>

#include "cache/cache_oracle.hpp"
#include "cache/oracle.hpp"
#include "cache/state_names.hpp"

namespace {

using namespace pagedkv_test;

constexpr std::size_t num_sequences = 3;
constexpr int num_blocks = 4;
constexpr int block_size = 2;
constexpr int max_guards = 4;

struct Move {
  Kind kind;
  std::uint8_t sequence;
  std::uint8_t number;
};

using Path = std::vector<Move>;

std::string describe(const Path& path) {
  std::string text;
  for (const Move& m : path)
    text += std::string(text.empty() ? "" : ", ") + kind_names[static_cast<std::size_t>(m.kind)] + " " +
            std::to_string(m.sequence) + ":" + std::to_string(m.number);
  return text;
}

/// What can be done next. Of the free places for a sequence one is as good as another.
class Moves {
 public:
  explicit Moves(const CoreOracle& oracle) : oracle_(oracle) {
    while (place_ < num_sequences && oracle.sequences()[place_]) ++place_;
  }

  const CoreOracle& oracle() const { return oracle_; }
  const Path& all() const { return all_; }
  std::size_t place() const { return place_; }
  bool has_place() const { return place_ < num_sequences; }

  void add(Kind kind, std::size_t s, int number) {
    all_.push_back({kind, static_cast<std::uint8_t>(s), static_cast<std::uint8_t>(number)});
  }

  template <class Function>
  void for_each_sequence(Function function) const {
    for (std::size_t s = 0; s < num_sequences; ++s)
      if (oracle_.sequences()[s]) function(s, oracle_.sequences()[s]->is);
  }

 private:
  const CoreOracle& oracle_;
  std::size_t place_ = 0;
  Path all_;
};

/// Sequences, a plan and the allocator.
struct Core {
  CoreOracle oracle{num_blocks, block_size, num_sequences};

  /// Without the check.
  void apply(const Move& m, unsigned depth) {
    switch (m.kind) {
      case Kind::append:
      case Kind::reserve:
        return oracle.append(m.sequence, 0, m.number, depth, m.kind == Kind::reserve);
      case Kind::accept:
        return oracle.accept(m.sequence, m.number);
      case Kind::fork:
        return oracle.fork(m.sequence, m.number);
      case Kind::truncate:
        return oracle.truncate(m.sequence, m.number);
      case Kind::release_before:
        return oracle.release_before(m.sequence, m.number);
      case Kind::drop:
        return oracle.drop(m.sequence);
      case Kind::guard:
        return oracle.guard(m.sequence, BlockId::none, m.number);
      case Kind::retire:
        return oracle.retire(m.number);
      default:
        return oracle.commit(0);
    }
  }

  Path moves() const {
    Moves moves{oracle};
    if (moves.has_place()) {
      for (const int count : {1, 2}) moves.add(Kind::append, moves.place(), count);
      moves.add(Kind::reserve, moves.place(), 1);
    }
    moves.for_each_sequence([&](std::size_t s, const NaiveSequence& is) {
      for (const int count : {1, 2}) moves.add(Kind::append, s, count);
      moves.add(Kind::reserve, s, 1);
      if (is.drafts > 0)
        for (const int count : {0, 1}) moves.add(Kind::accept, s, count);
      if (moves.has_place()) moves.add(Kind::fork, s, static_cast<int>(moves.place()));
      for (const int target : {0, 1, is.size() - 1})
        if (target == is.size() - 1 || target + 1 < is.size()) moves.add(Kind::truncate, s, std::max(target, 0));
      if (is.committed / block_size > is.released_blocks) moves.add(Kind::release_before, s, is.committed);
      moves.add(Kind::drop, s, 0);
    });
    if (!oracle.plans()[0].step->empty()) moves.add(Kind::commit, 0, 0);
    return moves.all();
  }

  std::uint64_t name() const { return StateNames(oracle).renamed(); }
};

/// The same with guards on all blocks of a sequence, until one of two fences.
struct Guarded : Core {
  Path moves() const {
    Path all = Core::moves();
    Moves more{oracle};
    more.for_each_sequence([&](std::size_t s, const NaiveSequence& is) {
      if (is.size() > 0 && std::ssize(oracle.guards()) < max_guards)
        for (const int fence : {1, 2}) more.add(Kind::guard, s, fence);
    });
    if (!oracle.guards().empty())
      for (const int fence : {1, 2}) more.add(Kind::retire, 0, fence);
    all.insert(all.end(), more.all().begin(), more.all().end());
    return all;
  }
};

/// Three prompts with a common beginning and one with an image, in a prefix cache.
struct Cached {
  CacheOracle<> oracle{num_blocks, block_size, num_sequences};

  void apply(const Move& m, unsigned) {
    using Prompt = CacheOracle<>::Prompt;
    static const std::array prompts = {Prompt{0, {0, 0, 0, 0, 0}}, Prompt{0, {0, 0, 0, 1, 1}}, Prompt{0, {0, 0, 0}},
                                       Prompt{2, {0, 0, 0, 0, 0, 0}}};
    switch (m.kind) {
      case Kind::admit: {
        AdmitOptions options{.partial_blocks = m.number % 2 == 1};
        options.twins = m.number == 2 ? Twins::wait : Twins::compute;
        return oracle.admit(m.sequence, 0, prompts[m.number], options);
      }
      case Kind::append:
        return oracle.append(m.sequence, 0, m.number, 0);
      case Kind::fork:
        return oracle.fork(m.sequence, m.number);
      case Kind::truncate:
        return oracle.truncate(m.sequence, m.number);
      case Kind::release_before:
        return oracle.release_before(m.sequence, m.number);
      case Kind::drop:
        return oracle.drop(m.sequence);
      case Kind::publish:
        return oracle.publish(m.sequence, m.number == 1, {});
      case Kind::pin:
        return oracle.pin(m.sequence, m.number);
      case Kind::unpin:
        return oracle.unpin(0);
      case Kind::reset:
        return oracle.reset();
      default:
        return oracle.commit(0);
    }
  }

  Path moves() const {
    Moves moves{oracle};
    for (const int prompt : {0, 1, 2, 3})
      if (moves.has_place()) moves.add(Kind::admit, moves.place(), prompt);
    if (moves.has_place()) moves.add(Kind::append, moves.place(), 1);
    moves.for_each_sequence([&](std::size_t s, const NaiveSequence& is) {
      moves.add(Kind::append, s, 1);
      if (moves.has_place()) moves.add(Kind::fork, s, static_cast<int>(moves.place()));
      if (is.size() > 1 && is.released_blocks == 0) moves.add(Kind::truncate, s, is.size() - 1);
      if (is.committed / block_size > is.released_blocks) moves.add(Kind::release_before, s, is.committed);
      moves.add(Kind::drop, s, 0);
      for (const int remap : {0, 1}) moves.add(Kind::publish, s, remap);
      if (oracle.num_pins() == 0 && is.committed >= block_size) moves.add(Kind::pin, s, block_size);
    });
    if (oracle.num_pins() > 0) moves.add(Kind::unpin, 0, 0);
    if (oracle.blocks().num_idle() > 0) moves.add(Kind::reset, 0, 0);
    if (!oracle.plans()[0].step->empty()) moves.add(Kind::commit, 0, 0);
    return moves.all();
  }

  std::uint64_t name() const { return StateNames(oracle).exact(); }
};

/// Numbers that were seen; open addressing.
class Seen {
 public:
  /// False if it was there.
  bool insert(std::uint64_t number) {
    if (2 * ++size_ > slots_.size()) grow();
    return place(number);
  }

 private:
  bool place(std::uint64_t number) {
    std::size_t at = number & (slots_.size() - 1);
    for (; slots_[at] != 0; at = (at + 1) & (slots_.size() - 1))
      if (slots_[at] == number) return --size_, false;
    slots_[at] = number;
    return true;
  }

  void grow() {
    std::vector<std::uint64_t> old(2 * slots_.size());
    std::swap(slots_, old);
    for (const std::uint64_t number : old)
      if (number != 0) place(number);
  }

  std::size_t size_ = 0;
  std::vector<std::uint64_t> slots_ = std::vector<std::uint64_t>(1 << 16);
};

/// Walks all states in order of depth. A state is reached by replaying the path that first led there; one that was seen
/// before, so at the same or a smaller depth, is checked but not followed.
template <class World>
void explore(int max_depth) {
  Seen seen;
  long num_transitions = 0, num_states = 1;
  std::vector<Path> frontier{{}}, next;
  seen.insert(World{}.name());
  for (int depth = 0; depth < max_depth && !frontier.empty(); ++depth, frontier = std::move(next), next = {}) {
    for (Path& path : frontier) {
      Path moves;
      for (std::size_t i = 0; i == 0 || i < moves.size(); ++i) {
        try {
          World world;
          for (std::size_t done = 0; done < path.size(); ++done) world.apply(path[done], static_cast<unsigned>(done));
          if (i == 0) moves = world.moves();
          path.push_back(moves[i]);
          world.apply(moves[i], static_cast<unsigned>(depth));
          world.oracle.check();
          ++num_transitions;
          if (seen.insert(world.name())) {
            ++num_states;
            next.push_back(path);
          }
        } catch (const std::exception& error) {
          FAIL(std::string(error.what()) << " after " << describe(path));
        }
        path.pop_back();
      }
    }
    MESSAGE("depth " << depth + 1 << ": " << num_states << " states, " << num_transitions << " transitions");
  }
}

/// PAGEDKV_DEPTH=1: one step deeper than usual, about six times the work.
int depth(int usual) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  usual -= 2;
#endif
  const char* more = std::getenv("PAGEDKV_DEPTH");
  return more == nullptr ? usual : usual + std::atoi(more);
}

}  // namespace

TEST_CASE("every short sequence of operations on sequences keeps every promise") { explore<Core>(depth(8)); }

TEST_CASE("so does every one with guards") { explore<Guarded>(depth(6)); }

TEST_CASE("so does every one with a prefix cache") { explore<Cached>(depth(8)); }
