// Eviction policies compared: request streams run through an engine's loop without a model; hits, work and time.
// usage: cache_simulator [--requests=N] [--stream=NAME] [--trace=FILE] [--record=FILE] [--json=FILE]
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <exception>
#include <fstream>
#include <iterator>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pagedkv/cache/eviction_lfu.hpp"
#include "pagedkv/cache/eviction_priority.hpp"
#include "pagedkv/cache/eviction_s3fifo.hpp"
#include "pagedkv/cache/prefix_cache.hpp"
#include "pagedkv/cache/trace_file.hpp"
#include "support/request_streams.hpp"
#include "support/simulated_engine.hpp"
#include "support/statistics.hpp"

namespace {

using namespace pagedkv;
using bench::Engine;
using bench::Figures;
using bench::Request;
using bench::Stream;

constexpr int num_rounds = 5;

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

template <class Cache>
Figures run_once(const Stream& stream, bool caches, Trace* trace) {
  Engine<Cache> engine{stream, caches, trace};
  std::int64_t num_records = 0;
  const double begin = cpu_seconds();
  while (!engine.is_done()) {
    engine.step();
    if (trace == nullptr) continue;
    num_records += std::ssize(trace->records());
    trace->clear();
  }
  const double seconds = cpu_seconds() - begin;
  Figures figures = engine.figures();
  figures.num_records = num_records;
  figures.seconds = seconds;
  return figures;
}

// The median time of some rounds; all else is the same in each.
template <class Cache>
Figures run(const Stream& stream, bool caches = true, Trace* trace = nullptr) {
  Figures figures;
  std::vector<double> seconds;
  for (int round = 0; round < num_rounds; ++round) {
    figures = run_once<Cache>(stream, caches, trace);
    seconds.push_back(figures.seconds);
  }
  figures.seconds = bench::quantile(seconds, .5);
  return figures;
}

/// Belady's optimum over blocks: the share of prompt tokens that a cache of the whole pool could hit if requests came
/// one at a time and it evicted what is needed last. A block is needed by all that needs its continuations, so what is
/// needed last can be a leaf always and the optimum keeps prefixes without being told to. An upper bound for an engine,
/// whose running requests take blocks away from the cache.
double best_hit_rate(const Stream& stream) {
  constexpr std::size_t never = std::size_t(-1);
  const BlockHash hash;
  struct Block {
    std::vector<std::size_t> uses = {};  // requests whose prompts could hit it
    std::size_t next = 0;                // into uses
    int depth = 0;
    bool is_cached = false;
  };
  std::vector<Block> blocks;
  std::unordered_map<std::uint64_t, std::size_t> numbers;  // by the hash of all tokens up to the block's end
  std::vector<std::vector<std::size_t>> paths;
  const BlockAllocatorOptions& pool = stream.pool;
  const auto size = static_cast<std::size_t>(pool.block_size);
  const auto num_usable = [&pool](const Request& r) {
    return static_cast<std::size_t>((r.num_prompt - 1) / pool.block_size);
  };
  for (const Request& request : stream.requests) {
    std::vector<std::size_t>& path = paths.emplace_back();
    std::uint64_t h = 0;
    for (std::size_t i = 0; (i + 1) * size <= request.tokens.size(); ++i) {
      h = hash(h, std::span(request.tokens).subspan(i * size, size), {});
      const auto [at, is_new] = numbers.try_emplace(h, blocks.size());
      if (is_new) blocks.push_back({.depth = static_cast<int>(i)});
      if (i < num_usable(request)) blocks[at->second].uses.push_back(paths.size() - 1);
      path.push_back(at->second);
    }
  }
  const auto next_use = [](const Block& b) { return b.next < b.uses.size() ? b.uses[b.next] : never; };
  std::set<std::tuple<std::size_t, int, std::size_t>> cached;  // next use, depth, block: the last one goes first
  std::int64_t num_hit = 0, num_tokens = 0;
  for (std::size_t i = 0; i < paths.size(); ++i) {
    const Request& request = stream.requests[i];
    std::size_t hit = 0;
    while (hit < num_usable(request) && blocks[paths[i][hit]].is_cached) ++hit;
    num_hit += static_cast<std::int64_t>(hit * size);
    num_tokens += request.num_prompt;
    for (const std::size_t number : paths[i]) {
      Block& block = blocks[number];
      if (block.is_cached) cached.erase({next_use(block), block.depth, number});
      while (next_use(block) <= i) ++block.next;
    }
    while (!cached.empty() && cached.size() + paths[i].size() > static_cast<std::size_t>(pool.num_blocks)) {
      blocks[std::get<2>(*cached.rbegin())].is_cached = false;
      cached.erase(std::prev(cached.end()));
    }
    for (const std::size_t number : paths[i]) {
      cached.insert({next_use(blocks[number]), blocks[number].depth, number});
      blocks[number].is_cached = true;
    }
  }
  return static_cast<double>(num_hit) / static_cast<double>(std::max<std::int64_t>(1, num_tokens));
}

class Report {
 public:
  explicit Report(const std::string& json) : json_(json.empty() ? nullptr : std::fopen(json.c_str(), "w")) {
    if (json_ != nullptr)
      std::fprintf(json_,
                   "{\n \"what\": \"cache_simulator: %d requests at a time; CPU time\",\n \"compiler\": \"" __VERSION__
                   "\",\n \"rows\": [",
                   bench::max_running);
  }
  Report(const Report&) = delete;
  Report& operator=(const Report&) = delete;
  ~Report() {
    if (json_ == nullptr) return;
    std::fprintf(json_, "\n ]\n}\n");
    std::fclose(json_);
  }

  void begin(const Stream& stream, double best) {
    std::int64_t num_prompt = 0, num_answer = 0;
    for (const Request& r : stream.requests) num_prompt += r.num_prompt, num_answer += r.num_answer();
    std::printf("\n%s: %d blocks of %d; %zu requests, prompts %lld and answers %lld tokens; Belady: %.1f %% hit\n",
                stream.name.c_str(), stream.pool.num_blocks, stream.pool.block_size, stream.requests.size(),
                static_cast<long long>(num_prompt), static_cast<long long>(num_answer), 100 * best);
    std::printf("%-10s %6s %8s %8s %8s %9s %9s %8s %7s %9s %6s %9s %9s\n", "policy", "hit %", "of best", "us/step",
                "us/req", "steps", "evicted", "preempt", "copies", "uploaded", "whole", "entries", "records");
  }

  void row(const Stream& stream, const char* policy, const Figures& f, double best) {
    const double hit = 100 * f.hit_rate();
    const double us_step = f.seconds * 1e6 / static_cast<double>(f.num_steps);
    const double us_request = f.seconds * 1e6 / static_cast<double>(stream.requests.size());
    const auto number = [](std::int64_t n) { return static_cast<long long>(n); };
    std::printf("%-10s %6.1f %8.3f %8.2f %8.1f %9lld %9lld %8lld %7lld %9lld %6lld %9lld %9lld\n", policy, hit,
                best > 0 ? f.hit_rate() / best : 0., us_step, us_request, number(f.num_steps),
                number(f.stats.evicted_blocks), number(f.num_preempted), number(f.num_copies), number(f.num_uploaded),
                number(f.num_whole), number(f.num_entries), number(f.num_records));
    if (json_ == nullptr) return;
    std::fprintf(
        json_,
        "%s\n  {\"name\": \"%s/%s\", \"hit_%%\": %.2f, \"belady_%%\": %.2f, \"us_per_step\": %.3f, "
        "\"us_per_request\": %.2f, \"steps\": %lld, \"evicted\": %lld, \"preempted\": %lld, \"copies\": %lld, "
        "\"uploaded_entries\": %lld, \"whole_uploads\": %lld, \"table_entries\": %lld, \"trace_records\": %lld}",
        is_first_ ? "" : ",", stream.name.c_str(), policy, hit, 100 * best, us_step, us_request, number(f.num_steps),
        number(f.stats.evicted_blocks), number(f.num_preempted), number(f.num_copies), number(f.num_uploaded),
        number(f.num_whole), number(f.num_entries), number(f.num_records));
    is_first_ = false;
  }

 private:
  std::FILE* json_;
  bool is_first_ = true;
};

void compare(const Stream& stream, Report& report) {
  const double best = best_hit_rate(stream);
  report.begin(stream, best);
  report.row(stream, "off", run<PrefixCache>(stream, false), best);
  report.row(stream, "LRU", run<PrefixCache>(stream), best);
  Trace trace{1 << 20};
  report.row(stream, "LRU+trace", run<PrefixCache>(stream, true, &trace), best);
  report.row(stream, "LFU", run<BasicPrefixCache<LfuEviction>>(stream), best);
  report.row(stream, "S3-FIFO", run<BasicPrefixCache<S3FifoEviction>>(stream), best);
  report.row(stream, "Priority", run<BasicPrefixCache<PriorityEviction>>(stream), best);
}

void record(const Stream& stream, const std::string& path) {
  Trace trace{1 << 22};
  std::ofstream file{path, std::ios::binary};
  const auto write = [&](const std::vector<std::byte>& bytes) {
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  };
  Engine<PrefixCache> engine{stream, true, &trace};
  write(begin_trace(BlockAllocator{stream.pool}));
  while (!engine.is_done()) {
    engine.step();
    std::vector<std::byte> piece;
    add_piece(piece, trace);
    trace.clear();
    write(piece);
  }
}

Stream load(const std::string& path) {
  std::ifstream file{path, std::ios::binary};
  const std::vector<char> text{std::istreambuf_iterator<char>{file}, {}};
  return bench::recorded(path.substr(path.rfind('/') + 1), load_trace(std::as_bytes(std::span(text))));
}

}  // namespace

int main(int argc, char** argv) try {
  std::string requests = "4000", only, trace, record_to, json;
  const std::pair<std::string_view, std::string*> options[] = {{"--requests=", &requests},
                                                               {"--stream=", &only},
                                                               {"--trace=", &trace},
                                                               {"--record=", &record_to},
                                                               {"--json=", &json}};
  for (const std::string_view arg : std::span(argv, static_cast<std::size_t>(argc)).subspan(1)) {
    const auto* const option = std::ranges::find_if(options, [arg](const auto& o) { return arg.starts_with(o.first); });
    if (option == std::end(options)) {
      std::fprintf(stderr, "unknown argument: %s\n", arg.data());
      return 2;
    }
    *option->second = arg.substr(option->first.size());
  }
  Report report{json};
  if (!trace.empty()) return compare(load(trace), report), 0;
  for (auto* const make : {bench::chat, bench::agents, bench::beams, bench::scan, bench::short_prompts}) {
    const Stream stream = make(std::stoi(requests));
    if (!only.empty() && only != stream.name) continue;
    if (!record_to.empty()) record(stream, record_to);
    compare(stream, report);
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
