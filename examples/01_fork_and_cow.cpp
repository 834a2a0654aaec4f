// Fork and copy-on-write: two continuations share a prompt's blocks until they write, and then copy one block, not the prompt.
#include <array>
#include <cstdio>

#include "letter_cache.hpp"
#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"

using namespace pagedkv;

namespace {

void show(const char* name, const Sequence& sequence, LetterCache& cache) {
  std::printf("%-7s blocks", name);
  for (const BlockId block : sequence.blocks()) std::printf(" %d", to_index(block));
  std::printf("  \"%s\"\n", cache.read(sequence).c_str());
}

}  // namespace

int main() {
  LetterCache cache{16, 4};
  // [fork]
  BlockAllocator blocks{{.num_blocks = 16, .block_size = 4}};  // ids and reference counts only; no bytes
  StepPlan step;                                               // what a back end must do before this step's attention
  Sequence prompt{blocks};                                     // move-only; gives its blocks back when it dies
  if (!prompt.append(10, step)) return 1;                      // false: out of blocks, and nothing has changed
  cache.run(step, "once upon ");                               // copies, then 10 rows of K and V; commits

  std::array beams{prompt.fork(), prompt.fork()};  // counts rise; no K or V moves
  std::printf("after the fork:  %d of %d blocks in use\n", blocks.num_used(), blocks.num_blocks());
  for (Sequence& beam : beams)
    if (!beam.append(3, step)) return 1;             // the tail block is shared: the step gains a block copy
  const int num_copies = cache.run(step, "a tmy ");  // copies first, then 3 rows of each, in the order of the appends
  // [fork]
  std::printf("after the write: %d blocks in use, %d copied\n", blocks.num_used(), num_copies);
  show("prompt", prompt, cache);
  show("beam 0", beams[0], cache);
  show("beam 1", beams[1], cache);

  prompt.truncate(0);
  std::printf("prompt gone:     %d blocks in use\n", blocks.num_used());
  beams[0].truncate(11);
  if (!beams[0].append(1, step)) return 1;
  std::printf("beam 0 is the one owner of its tail; copies: %d\n", cache.run(step, "!"));
  show("beam 0", beams[0], cache);

  // [all-or-nothing]
  const auto before = blocks.state_hash();
  if (!beams[1].append(1000, step)) std::printf("1000 tokens more: refused, ");
  std::printf("%s\n", blocks.state_hash() == before ? "and nothing has changed" : "but something changed");
  // [all-or-nothing]
}
