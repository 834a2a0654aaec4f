// Parallel sampling: many continuations of one prompt share its blocks; only a tail that is not full is ever copied.
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "letter_cache.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/core/math.hpp"

using namespace pagedkv;

int main() {
  constexpr int block_size = 8, num_samples = 6, num_new = 12;
  const std::string text = "it is a truth universally acknowledged, that ";  // 45 letters: five blocks and a bit more
  LetterCache cache{64, block_size};
  BlockAllocator blocks{{.num_blocks = 64, .block_size = block_size}};
  StepPlan step;

  // [samples]
  Sequence prompt{blocks};
  if (!prompt.append(static_cast<int>(text.size()), step)) return 1;
  cache.run(step, text);  // the prompt is computed once

  std::vector<Sequence> samples;
  for (int i = 0; i < num_samples - 1; ++i) samples.push_back(prompt.fork());
  samples.push_back(std::move(prompt));  // the prompt itself is the last sample

  int num_copies = 0;
  std::mt19937 model{1};  // a model of little learning: any letter follows any other
  for (int token = 0; token < num_new; ++token) {
    std::string letters;
    for (Sequence& sample : samples) {
      if (!sample.append(1, step)) return 1;
      letters += static_cast<char>('a' + model() % 26);
    }
    num_copies += cache.run(step, letters);
  }
  // [samples]

  for (const Sequence& sample : samples) std::printf("\"%s\"\n", cache.read(sample).c_str());
  const int apart = num_samples * ceil_div(static_cast<int>(text.size()) + num_new, block_size);
  std::printf("%d blocks in use instead of %d; owners of the tail: %d, copies: %d\n", blocks.num_used(), apart,
              num_samples, num_copies);
}
