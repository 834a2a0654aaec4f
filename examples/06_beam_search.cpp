// Beam search: each step keeps the best continuations, forks their parents and drops the rest; blocks follow by counting.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "letter_cache.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/core/math.hpp"

using namespace pagedkv;

namespace {

// A model: how likely `next` is after `last`, counted in a text.
double log_probability(char last, char next) {
  constexpr std::string_view text =
      "the rain in spain stays mainly in the plain. the train in the rain is the same train again. ";
  int pairs = 0, starts = 0;
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    starts += text[i] == last;
    pairs += text[i] == last && text[i + 1] == next;
  }
  return pairs == 0 ? -20.0 : std::log(double(pairs) / starts);
}

struct Beam {
  Sequence sequence;
  char last;
  double score;  // sum of log probabilities
};

struct Candidate {
  std::size_t parent;
  char letter;
  double score;
};

}  // namespace

int main() {
  constexpr int width = 4, num_new = 14;
  const std::string start = "the rain";
  LetterCache cache{64, 4};
  BlockAllocator blocks{{.num_blocks = 64, .block_size = 4}};
  StepPlan step;

  Sequence prompt{blocks};
  if (!prompt.append(static_cast<int>(start.size()), step)) return 1;
  cache.run(step, start);
  std::vector<Beam> beams;
  beams.push_back({std::move(prompt), start.back(), 0.0});

  int num_copies = 0;
  for (int token = 0; token < num_new; ++token) {
    std::vector<Candidate> candidates;
    for (std::size_t parent = 0; parent < beams.size(); ++parent)
      for (const char letter : std::string_view("abcdefghijklmnopqrstuvwxyz. "))
        candidates.push_back({parent, letter, beams[parent].score + log_probability(beams[parent].last, letter)});
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
    candidates.resize(width);

    // [beams]
    std::vector<Beam> next;
    for (const Candidate& c : candidates) next.push_back({beams[c.parent].sequence.fork(), c.letter, c.score});
    beams = std::move(next);  // parents go first: a tail with one owner left is written in place
    std::string letters;
    for (Beam& beam : beams) {
      if (!beam.sequence.append(1, step)) return 1;
      letters += beam.last;
    }
    num_copies += cache.run(step, letters);
    // [beams]
  }

  for (const Beam& beam : beams) std::printf("%8.4f  \"%s\"\n", beam.score, cache.read(beam.sequence).c_str());
  std::printf("%d blocks in use instead of %d; copies in %d steps: %d\n", blocks.num_used(),
              width * ceil_div(static_cast<int>(start.size()) + num_new, blocks.block_size()), num_new, num_copies);
}
