// Traces: what is recorded and asked again has the same state at every step, and what is no trace is refused.
#include "pagedkv/cache/replay.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cache/random_caller.hpp"
#include "cache/tokens.hpp"
#include "pagedkv/cache/eviction_s3fifo.hpp"
#include "pagedkv/cache/prefix_cache.hpp"

using namespace pagedkv;
using pagedkv_test::pins;
using pagedkv_test::pool;
using pagedkv_test::RandomCaller;
using Records = std::vector<TraceRecord>;

namespace {

template <class Cache>
void check_replay(std::uint64_t seed) {
  RandomCaller<Cache> caller{seed, 40000};
  caller.run(1500);
  REQUIRE(caller.trace().num_lost() == 0);
  BlockAllocator blocks{pool};
  Cache cache{blocks, pins};
  Replay<Cache> replay{blocks, &cache};
  CHECK_NOTHROW_MESSAGE(replay.run(caller.trace()), "seed " << seed);
  CHECK(cache.state_hash() == caller.cache().state_hash());
}

TraceRecord state(std::uint64_t hash) { return TraceRecord::with(TraceOp::state, hash); }

std::string error_of(const Records& records, BlockAllocatorOptions options = pool) {
  BlockAllocator blocks{options};
  Replay<> replay{blocks};
  try {
    replay.run(records);
  } catch (const TraceError& error) {
    return error.what();
  }
  return "none";
}

bool mentions(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("random calls have the same state at every step when they are replayed") {
  for (std::uint64_t seed = 0; seed < 30; ++seed) check_replay<PrefixCache>(seed);
  for (std::uint64_t seed = 0; seed < 10; ++seed) check_replay<BasicPrefixCache<S3FifoEviction>>(seed);
}

TEST_CASE("every kind of record occurs in the random calls") {
  std::array<int, static_cast<std::size_t>(TraceOp::outside) + 1> counts{};
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    RandomCaller<PrefixCache> caller{seed, 40000};
    caller.run(1500);
    CHECK(caller.num_wrong < 600);
    for (const TraceRecord& record : caller.trace().records()) ++counts[static_cast<std::size_t>(record.op)];
  }
  for (std::size_t op = 0; op < static_cast<std::size_t>(TraceOp::outside); ++op)
    CHECK_MESSAGE(counts[op] > 0, "op " << op);
  CHECK(counts.back() == 0);
}

TEST_CASE("a recorded run ends in the same state on every build") {
  RandomCaller<PrefixCache> caller{43, 40000};
  caller.run(1500);
  CHECK(caller.cache().state_hash() == 16431783180616045891u);
}

TEST_CASE("a failure in the field becomes a test: the records say how it came about") {
  // Five tokens were forked; the child wrote first and copied the shared tail, then the parent died in the same step.
  const Records records = {
      {.op = TraceOp::append, .a = 1, .b = 1, .c = 5},
      {.op = TraceOp::commit, .b = 1},
      {.op = TraceOp::fork, .a = 1, .b = 2},
      {.op = TraceOp::append, .a = 2, .b = 2, .c = 1},
      {.op = TraceOp::drop, .a = 1},
  };
  BlockAllocator blocks{pool};
  Replay<> replay{blocks};
  replay.run(records);
  REQUIRE(replay.open_step(2) != nullptr);
  REQUIRE(replay.open_step(2)->copies().size() == 1);
  const BlockCopy copy = replay.open_step(2)->copies()[0];
  CHECK(copy.num_rows == 1);
  CHECK(blocks.ref_count(copy.source) == 0);
  CHECK(blocks.state(copy.source) == BlockState::writing);  // held until the copy is made
  CHECK(replay.sequence(1) == nullptr);
  CHECK(replay.sequence(2)->size() == 6);
  blocks.check_invariants();
  replay.run(Records{{.op = TraceOp::commit, .b = 2}});
  CHECK(blocks.state(copy.source) == BlockState::free);
}

TEST_CASE("a replay that goes another way says where") {
  const Records append = {{.op = TraceOp::append, .a = 1, .b = 1, .c = 5}};
  const auto after_append = [&](const TraceRecord& next) { return error_of({append[0], next}); };
  CHECK(error_of(append) == "none");
  CHECK(error_of(append, {.num_blocks = 1, .block_size = 4}) == "Replay: record 0 (append): success expected, refusal");
  CHECK(error_of({{.op = TraceOp::append, .succeeded = 0, .a = 1, .b = 1, .c = 5}}) ==
        "Replay: record 0 (append): refusal expected, success");
  CHECK(error_of({{.op = TraceOp::append, .a = 1, .b = 2, .c = 5}}) == "Replay: record 0 (append): step 2 expected, 1");
  CHECK(error_of({{.op = TraceOp::append, .a = 1, .b = 0, .c = 5}}) == "Replay: record 0 (append): step 0 expected, 1");
  CHECK(mentions(after_append(state(0)), "record 1 (state): state 0 expected, "));
  CHECK(mentions(after_append({.op = TraceOp::append, .a = 1, .b = 2, .c = 1}),
                 "record 1 (append): accepted expected, "));
  CHECK(mentions(after_append({.op = TraceOp::fork, .a = 1, .b = 1}), "record 1 (fork): a new child expected"));
  CHECK(mentions(after_append({.op = TraceOp::commit, .b = 7}), "record 1 (commit): an open step expected, step 7"));
  CHECK(mentions(after_append({.op = TraceOp::give_back, .c = 1}), "record 1 (give_back): reserved blocks expected"));
  CHECK(mentions(after_append({.op = TraceOp::guard, .a = 1000}), "record 1 (guard): accepted expected"));
  CHECK(mentions(after_append({.op = TraceOp::reset}), "record 1 (reset): a prefix cache expected, none"));
  CHECK(mentions(after_append({.op = TraceOp::tokens}), "record 1 (tokens): an operation expected, a part of one"));
  CHECK(mentions(after_append({.op = static_cast<TraceOp>(99)}), "record 1 (of no known kind)"));
}

TEST_CASE("blocks that were handed out by hand cannot be replayed") {
  Trace trace{8};
  BlockAllocator blocks{pool};
  blocks.record_to(&trace);
  std::array<BlockId, 2> ids;
  REQUIRE(blocks.allocate(ids));
  CHECK(mentions(error_of({trace.records().begin(), trace.records().end()}), "record 0 (outside)"));
  blocks.release(ids);
}

TEST_CASE("a call of the cache is read as it was written, and not at all if a part of it is missing") {
  const std::string model(25, 'm'), adapter(12, '\xff'), content(1, '\0');
  const std::vector<PrefixExtra> extras = {{0, 2, content}, {3, 4, ""}, {7, 9, model}};
  AdmitOptions options{.salt = ~0ull, .model = model, .adapter = adapter, .extras = extras};
  options.partial_blocks = options.no_read = options.no_write = true;
  options.twins = Twins::wait;
  options.retention = {.priority = Retention::max_priority, .expires_at = -5};
  options.max_append = 3;
  options.watermark = 9;
  const Tokens tokens = iota(10, -4);
  Trace trace{64};
  detail::write_admit(trace, 6, 2, tokens, options, true);
  Records records{trace.records().begin(), trace.records().end()};
  CHECK(records[0] == TraceRecord{.op = TraceOp::admit, .a = 6, .b = 2, .c = 10});

  detail::PrefixCallReader reader;
  REQUIRE(reader.read(records, 0) == records.size());
  const AdmitOptions& read = reader.options();
  CHECK(std::ranges::equal(reader.tokens(), tokens));
  CHECK(detail::scope_key(read.scope()) == detail::scope_key(options.scope()));
  CHECK(detail::extras_key(read.extras, 0, 10) == detail::extras_key(extras, 0, 10));
  CHECK(std::array{read.partial_blocks, read.no_read, read.no_write} == std::array{true, true, true});
  CHECK(read.twins == Twins::wait);
  CHECK(read.retention == options.retention);
  CHECK(read.max_append == 3);
  CHECK(read.watermark == 9);

  for (std::size_t count = 1; count < records.size(); ++count)
    CHECK_FALSE(reader.read(std::span(records).first(count), 0));
  for (std::size_t left_out = 1; left_out < records.size(); ++left_out) {
    const auto option = static_cast<detail::TraceOption>(records[left_out].detail);
    const bool is_whole = records[left_out].op == TraceOp::options && option != detail::TraceOption::model &&
                          option != detail::TraceOption::adapter && option != detail::TraceOption::extra &&
                          option != detail::TraceOption::content;
    Records fewer = records;
    fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(left_out));
    fewer.push_back({.op = TraceOp::reset});
    CHECK_MESSAGE(reader.read(fewer, 0).has_value() == is_whole, "without record " << left_out);
  }
}

TEST_CASE("an option that this version does not know is refused") {
  const auto is_read = [](detail::TraceOption option, std::uint64_t value) {
    const Records records = {{.op = TraceOp::admit},
                             TraceRecord::with(TraceOp::options, value, 0, static_cast<std::uint16_t>(option))};
    return detail::PrefixCallReader{}.read(records, 0).has_value();
  };
  CHECK(is_read(detail::TraceOption::flags, 0x0f1f));
  CHECK_FALSE(is_read(detail::TraceOption::flags, 0x20));
  CHECK_FALSE(is_read(detail::TraceOption::flags, 0x10000));
  CHECK_FALSE(is_read(detail::TraceOption{99}, 0));
}

TEST_CASE("tokens that the cache knows already need not be kept") {
  Trace trace{64};
  detail::write_publish(trace, 1, iota(12), 8, {}, {}, true);
  CHECK(trace.records().size() == 5);  // the call, two options, four tokens
  detail::PrefixCallReader reader;
  REQUIRE(reader.read(trace.records(), 8));
  CHECK(std::ranges::equal(reader.tokens(), Tokens{0, 0, 0, 0, 0, 0, 0, 0, 8, 9, 10, 11}));
  CHECK(reader.remaps());
  CHECK_FALSE(reader.read(trace.records(), 7));
}

TEST_CASE("a trace comes back from its file, piece by piece") {
  RandomCaller<PrefixCache> caller{3, 10000};
  caller.run(300);
  const auto records = caller.trace().records();
  std::vector<std::byte> file = begin_trace(caller.blocks());
  CHECK(file.size() == 16);
  add_piece(file, caller.trace());
  CHECK(file.size() == 16 * (records.size() + 2));
  add_piece(file, caller.trace());
  const SavedTrace loaded = load_trace(file);
  CHECK(loaded.options.num_blocks == pool.num_blocks);
  CHECK(loaded.options.block_size == pool.block_size);
  REQUIRE(loaded.records.size() == 2 * records.size());
  CHECK(std::ranges::equal(std::span(loaded.records).first(records.size()), records));
  CHECK(std::ranges::equal(std::span(loaded.records).last(records.size()), records));
}

TEST_CASE("files are the same on every machine") {
  BlockAllocator blocks{{.num_blocks = 0x01020304, .block_size = 5}};
  Trace trace{1};
  trace.write({.op = TraceOp::fork, .succeeded = 1, .detail = 0x0706, .a = 0x0b0a0908, .b = 0x0f0e0d0c, .c = -2});
  std::vector<std::byte> file = begin_trace(blocks);
  add_piece(file, trace);
  const std::vector<int> expected = {'p',  'k',  't',  '1',  -1,   -1,   -1,   -1,   4,    3,    2,    1,
                                     5,    0,    0,    0,    1,    0,    0,    0,    0,    0,    0,    0,
                                     -1,   -1,   -1,   -1,   -1,   -1,   -1,   -1,   3,    1,    6,    7,
                                     0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0xfe, 0xff, 0xff, 0xff};
  REQUIRE(file.size() == expected.size());
  for (std::size_t i = 0; i < file.size(); ++i)
    if (expected[i] >= 0) CHECK(std::to_integer<int>(file[i]) == expected[i]);
}

TEST_CASE("files that are foreign, cut off or damaged are refused") {
  RandomCaller<PrefixCache> caller{3, 1000};
  caller.run(20);
  std::vector<std::byte> file = begin_trace(caller.blocks());
  add_piece(file, caller.trace());
  const std::size_t num_records = caller.trace().records().size();
  REQUIRE(load_trace(file).records.size() == num_records);

  CHECK_THROWS_AS(load_trace({}), TraceError);
  CHECK_THROWS_AS(load_trace(std::vector<std::byte>(64, std::byte{'x'})), TraceError);
  for (std::size_t size = 0; size < file.size(); ++size)
    if (size != 16) CHECK_THROWS_AS(load_trace(std::span(file).first(size)), TraceError);
  for (std::size_t i = 0; i < file.size(); ++i) {
    std::vector<std::byte> damaged = file;
    damaged[i] ^= std::byte{4};
    CHECK_THROWS_AS(load_trace(damaged), TraceError);
  }
  std::vector<std::byte> longer = file;
  add_piece(longer, caller.trace());
  longer.pop_back();
  CHECK_THROWS_AS(load_trace(longer), TraceError);
  CHECK(load_trace(longer, CutEnd::drop).records.size() == num_records);
}

TEST_CASE("a trace that lost records is neither saved nor replayed") {
  Trace trace{1};
  BlockAllocator blocks{pool};
  trace.write({.op = TraceOp::reset});
  std::vector<std::byte> file;
  CHECK_NOTHROW(add_piece(file, trace));
  trace.write({.op = TraceOp::reset});
  CHECK_THROWS_AS(add_piece(file, trace), InvalidArgument);
  Replay<> replay{blocks};
  CHECK_THROWS_WITH_AS(replay.run(trace), "Replay: 1 records were lost", TraceError);
}

TEST_CASE("nothing is written that nobody asked for") {
  Trace trace{100};
  BlockAllocator blocks{pool};
  PrefixCache cache{blocks, pins};
  StepPlan step;
  const auto serve = [&] {
    Sequence s{blocks};
    REQUIRE(cache.admit(iota(9), s, step));
    step.commit();
    cache.publish(iota(9), s);
  };
  serve();
  CHECK(trace.records().empty());
  blocks.record_to(&trace);
  serve();
  CHECK_FALSE(trace.records().empty());
  trace.clear();
  blocks.record_to(nullptr);
  serve();
  CHECK(trace.records().empty());
}
