// The prefix cache: a request that starts like an earlier one starts with its blocks; tokens decide, tenants stay apart.
#include <cstdio>
#include <string>
#include <vector>

#include "letter_cache.hpp"
#include "pagedkv/cache/prefix_cache.hpp"

using namespace pagedkv;

namespace {

std::vector<std::int32_t> tokens_of(const std::string& text) { return {text.begin(), text.end()}; }

// One request from admission to its last letter; false: it does not fit at present, and nothing has changed.
bool serve(const std::string& text, std::uint64_t tenant, PrefixCache& prefixes, BlockAllocator& blocks,
           LetterCache& cache) {
  // [admit]
  const std::vector<std::int32_t> tokens = tokens_of(text);
  StepPlan step;
  Sequence sequence{blocks};
  const Admission admission = prefixes.admit(tokens, sequence, step, {.salt = tenant});  // one transaction
  if (!admission) return false;                                    // nothing has changed, not even the eviction order
  const auto [cached, to_compute, appended] = *admission;          // never all cached: the last token must be computed
  cache.run(step, text.substr(static_cast<std::size_t>(cached)));  // prefill from position `cached`; then step.commit()
  prefixes.publish(tokens, sequence, {.salt = tenant});  // a hash narrows, tokens decide; only what was committed
  // [admit]
  std::printf("tenant %d %-30s %2d cached, %2d computed; reads \"%s\"\n", static_cast<int>(tenant),
              ("\"" + text + "\":").c_str(), cached, to_compute, cache.read(sequence).c_str());
  return true;
}

}  // namespace

int main() {
  LetterCache cache{12, 4};
  BlockAllocator blocks{{.num_blocks = 12, .block_size = 4}};
  PrefixCache prefixes{blocks};  // keeps published blocks; yields the coldest when blocks run dry

  serve("you are helpful. hello!", 1, prefixes, blocks, cache);
  serve("you are helpful. who am I?", 1, prefixes, blocks, cache);  // whole blocks of the common start
  serve("you are helpful. hello!", 2, prefixes, blocks, cache);     // another tenant: no hit
  std::printf("%d blocks idle, %d free\n", blocks.num_idle(), blocks.num_free());

  serve("a long text that needs nearly all of the blocks", 1, prefixes, blocks, cache);
  std::printf("%d blocks evicted\n", static_cast<int>(prefixes.stats().evicted_blocks));
  serve("you are helpful. hello!", 1, prefixes, blocks, cache);  // gone: the coldest went first

  Sequence sequence{blocks};
  StepPlan step;
  const Admission admission = prefixes.admit(tokens_of(std::string(100, 'x')), sequence, step);
  std::printf("100 letters: %s\n", !admission && admission.refusal() == Refusal::never ? "never fits" : "fits");
}
