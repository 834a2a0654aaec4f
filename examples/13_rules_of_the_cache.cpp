// The rules of the cache, each as a few lines that are checked: the examples of docs/cache.md.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <source_location>
#include <vector>

#include "pagedkv/cache/events.hpp"
#include "pagedkv/cache/prefix_cache.hpp"
#include "pagedkv/cache/replay.hpp"
#include "pagedkv/cache/trace_file.hpp"

using namespace pagedkv;

namespace {

template <class Condition>
void expect(const Condition& condition, const std::source_location here = std::source_location::current()) {
  if (condition) return;
  std::printf("line %d: not so\n", static_cast<int>(here.line()));
  std::exit(1);
}

constexpr BlockAllocatorOptions options{.num_blocks = 8, .block_size = 4};

void copy_on_write() {
  // [write]
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  StepPlan step;
  Sequence a{blocks};
  expect(a.append(6, step));     // two blocks; the second has 2 of its 4 rows
  expect(a.fork().size() == 0);  // a fork shares committed tokens only, and none is yet
  step.commit();
  Sequence b = a.fork(), c = a.fork();  // never fails, copies nothing
  expect(blocks.num_used() == 2);
  expect(a.append(1, step) && b.append(1, step) && c.append(1, step));
  expect(step.copies().size() == 2);  // three owners, two copies: the last one writes in place
  expect(step.copies()[0].num_rows == 2 && blocks.num_used() == 4);
  step.commit();
  // [write]

  // [hold]
  Sequence d = a.fork();
  expect(d.append(1, step));  // copies the tail that it shares with a
  const BlockId source = step.copies()[0].source;
  a.truncate(0);  // the source's last owner; what is still to be copied is held until the commit
  expect(blocks.ref_count(source) == 0 && blocks.state(source) != BlockState::free);
  step.commit();
  expect(blocks.state(source) == BlockState::free);
  // [hold]
}

void drafts_and_windows() {
  BlockAllocator blocks{options};
  StepPlan step;
  // [drafts]
  Sequence s{blocks};
  expect(s.append(7, step));
  step.commit();
  expect(s.reserve(3, step));  // guessed tokens: rows and blocks like others, 10 tokens in 3 blocks
  step.commit();               // written, but not committed: not shared, not published
  expect(s.size() == 10 && s.num_committed() == 7 && s.fork().size() == 7);
  s.accept(2);  // the first two were right
  expect(s.size() == 9 && s.num_committed() == 9);
  s.truncate(8);  // gives the third block back; never fails for lack of blocks
  expect(blocks.num_used() == 2 && blocks.state(s.table()[1]) == BlockState::sealed);

  expect(s.append(1, step));
  s.truncate(8);  // in the middle of a step: the row is dead, and the stores skip it
  expect(step.slots()[0] == dead_slot);
  step.commit();
  // [drafts]

  // [window]
  s.release_before(6);  // behind a sliding window; position 6 is in the second block, so the first one goes
  expect(s.table()[0] == BlockId::none && s.table().slot(3) == dead_slot);
  expect(s.size() == 8 && blocks.num_used() == 1);  // positions stay what they were
  // [window]
}

void room() {
  BlockAllocator blocks{options};
  StepPlan step;
  // [room]
  std::optional<Reservation> promised = blocks.reserve(7);  // no matter which 7 of the 8
  expect(promised && blocks.num_free() == 8 && blocks.num_available() == 1);
  Sequence mine{blocks}, other{blocks};
  const std::uint64_t before = blocks.state_hash();
  expect(!other.append(8, step));  // needs two blocks
  expect(blocks.state_hash() == before);
  expect(mine.append(8, step, *promised) && promised->size() == 5);
  promised.reset();  // what was not taken is available again
  expect(other.append(8, step));
  step.commit();
  // [room]

  // [guard]
  const std::array guarded{other.table()[0]};
  blocks.guard(guarded, 41);  // another stream reads the block until its step 41
  other.truncate(0);
  expect(blocks.state(guarded[0]) == BlockState::quarantined && blocks.num_available() == 5);
  blocks.retire(41);  // step 41 and all before it have ended
  expect(blocks.state(guarded[0]) == BlockState::free && blocks.num_available() == 6);
  // [guard]
}

void prefixes() {
  // [publish]
  BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
  PrefixCache cache{blocks};  // dies before the allocator, and after all sequences and steps
  StepPlan step;
  const std::vector<std::int32_t> tokens{1, 2, 3, 4, 5, 6, 7, 8, 9};
  Sequence first{blocks};
  const Admission admission = cache.admit(tokens, first, step, {.watermark = 5});  // 5 blocks stay for those that run
  expect(admission && admission->cached == 0 && admission->to_compute == 9);
  cache.publish(tokens, first);  // nothing is committed, so nothing is published
  expect(cache.num_cached_tokens(tokens) == 0);
  step.commit();
  cache.publish(tokens, first);  // full committed blocks, and of these the new ones
  expect(cache.num_cached_tokens(tokens) == 8 && blocks.state(first.table()[1]) == BlockState::active);

  Sequence second{blocks};
  expect(cache.admit(tokens, second, step, {.watermark = 5}).refusal() == Refusal::later);
  const Admission hit = cache.admit(tokens, second, step);
  expect(hit->cached == 8 && hit->to_compute == 1);  // never everything: the last token's query gives the logits
  expect(blocks.num_used() == 4);                    // two blocks have two owners
  step.commit();
  // [publish]
}

void twins_and_pins() {
  BlockAllocator blocks{options};
  PrefixCache cache{blocks};
  StepPlan step;
  const std::vector<std::int32_t> tokens{1, 2, 3, 4, 5, 6, 7, 8, 9};
  {
    // [twins]
    Sequence first{blocks}, twin{blocks};
    expect(cache.admit(tokens, first, step));
    expect(cache.admit(tokens, twin, step, {.twins = Twins::wait}).refusal() == Refusal::twin);  // try in the next step
    expect(cache.admit(tokens, twin, step));  // Twins::compute, the default: computes the same blocks
    step.commit();
    cache.publish(tokens, first);
    expect(blocks.num_used() == 6);
    cache.publish_and_remap(tokens, twin);  // takes the blocks of first and gives its own back
    expect(blocks.num_used() == 4 && twin.table()[0] == first.table()[0]);
    // [twins]
  }
  // [pins]
  expect(blocks.num_idle() == 2);  // published, and nobody's: to be found, or to be evicted
  const std::optional<PinId> pin = cache.pin(tokens);
  expect(pin && blocks.num_idle() == 0 && blocks.num_used() == 2);  // a pin is an owner
  cache.reset();                                                    // e.g. the weights have changed
  expect(!cache.unpin(*pin) && blocks.num_idle() == 2);             // pins are gone
  expect(cache.num_cached_tokens(tokens) == 0);                     // and nothing is found any more
  // [pins]
}

void events_and_traces() {
  const std::vector<std::int32_t> tokens{1, 2, 3, 4, 5, 6, 7, 8, 9};
  {
    // [events]
    BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
    PrefixCache cache{blocks, {.event_capacity = 64}};
    StepPlan step;
    Sequence sequence{blocks};
    expect(cache.admit(tokens, sequence, step, {.salt = 7}));
    step.commit();
    cache.publish(tokens, sequence, {.salt = 7});

    const CacheEvents drained = cache.drain_events();  // num_lost > 0: take cache.snapshot_events() instead
    expect(drained.num_lost == 0 && drained.events.size() == 2);
    const std::vector<ContentKey> keys = content_keys(tokens, {.salt = 7}, 4);  // in the router, without a cache
    expect(drained.events[1].kind == CacheEventKind::stored && drained.events[1].key == keys[1]);
    // [events]
  }
  // [trace]
  Trace trace{1000};  // records of 16 bytes; writing never allocates
  std::vector<std::byte> file;
  std::uint64_t state = 0;
  {
    BlockAllocator blocks{{.num_blocks = 8, .block_size = 4}};
    blocks.record_to(&trace);
    file = begin_trace(blocks);
    StepPlan step;
    Sequence sequence{blocks};
    expect(sequence.append(6, step));
    step.commit();
    Sequence fork = sequence.fork();
    expect(fork.append(1, step));
    step.commit();
    add_piece(file, trace);  // what happened so far
    state = blocks.state_hash();
  }
  const SavedTrace saved = load_trace(file);  // on another machine, in a unit test
  BlockAllocator blocks{saved.options};
  Replay replay{blocks};
  replay.run(saved.records);
  expect(blocks.state_hash() == state);
  // [trace]
}

}  // namespace

int main() {
  copy_on_write();
  drafts_and_windows();
  room();
  prefixes();
  twins_and_pins();
  events_and_traces();
  std::printf("the rules hold\n");
}
