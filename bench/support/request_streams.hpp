// Request streams for the cache simulator: synthetic ones with all of their parameters, and those of recorded traces.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <queue>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pagedkv/cache/block_allocator.hpp"
#include "pagedkv/cache/trace.hpp"
#include "pagedkv/cache/trace_file.hpp"
#include "pagedkv/cache/trace_prefix.hpp"

namespace bench {

using Tokens = std::vector<std::int32_t>;

/// What a request asks and what it is going to answer.
struct Request {
  Tokens tokens;  // the prompt and the answer
  int num_prompt = 0;
  int num_beams = 1;
  std::uint8_t priority = 0;  // 1: its tokens are expected to come back

  int num_answer() const { return static_cast<int>(tokens.size()) - num_prompt; }
};

/// In order of arrival, and the pool to serve them from.
struct Stream {
  std::string name;
  pagedkv::BlockAllocatorOptions pool = {.num_blocks = 8192, .block_size = 16};
  std::vector<Request> requests = {};
};

namespace detail {

/// The same numbers on every machine: mt19937 is specified, the standard distributions are not.
class Chance {
 public:
  explicit Chance(unsigned seed) : random_(seed) {}

  int below(int bound) { return static_cast<int>(random_() % static_cast<unsigned>(bound)); }
  bool happens(int percent) { return below(100) < percent; }

  /// exp of a normal number, a sum of twelve uniform ones.
  double log_normal(double median, double sigma) {
    int sum = 0;
    for (int i = 0; i < 12; ++i) sum += below(65536);
    return median * std::exp(sigma * (sum / 65536. - 6.));
  }
  int length(double median, double sigma, int least, int most) {
    return static_cast<int>(std::clamp<double>(log_normal(median, sigma), least, most));
  }
  /// 0 .. count - 1, the i-th with a weight of 1 / (i + 1).
  int zipf(int count) {
    double total = 0;
    for (int i = 1; i <= count; ++i) total += 1. / i;
    double left = total * below(1 << 20) / (1 << 20);
    int i = 0;
    while (i + 1 < count && (left -= 1. / (i + 1)) >= 0) ++i;
    return i;
  }

  void add_text(Tokens& tokens, int count) {
    for (int i = 0; i < count; ++i) tokens.push_back(below(1 << 17));
  }
  Tokens text(int count) {
    Tokens tokens;
    add_text(tokens, count);
    return tokens;
  }
  std::vector<Tokens> texts(int count, int length) {
    std::vector<Tokens> all;
    for (int i = 0; i < count; ++i) all.push_back(text(length));
    return all;
  }

 private:
  std::mt19937 random_;
};

/// A conversation or a branch of an agent's work that goes on at some time.
struct Thread {
  double time;
  int number;  // among equal times the older one first
  Tokens context;
  int num_left;  // requests

  friend bool operator<(const Thread& a, const Thread& b) {
    return a.time != b.time ? a.time > b.time : a.number > b.number;  // the soonest on top of a queue
  }
};

inline Request request(Tokens prompt, int num_answer, Chance& chance) {
  Request r{.tokens = std::move(prompt)};
  r.num_prompt = static_cast<int>(r.tokens.size());
  chance.add_text(r.tokens, num_answer);
  return r;
}

}  // namespace detail

/// Synthetic. One conversation begins per unit of time, with one of 4 system prompts of 256 tokens, and has 1 .. 10
/// turns; a message has 55 tokens (median of a log-normal, sigma 1, cut to 4 .. 2048), an answer 180 (0.8, 8 .. 1024),
/// and the next message comes after 40 units (sigma 1). Each prompt is all that was said before.
inline Stream chat(int num_requests) {
  detail::Chance chance(1);
  const std::vector<Tokens> systems = chance.texts(4, 256);
  Stream stream{.name = "chat"};
  std::priority_queue<detail::Thread> threads;
  for (int started = 0; std::ssize(stream.requests) < num_requests;) {
    if (threads.empty() || threads.top().time > started) {
      const int system = chance.below(4);
      threads.push(
          {static_cast<double>(started), started, systems[static_cast<std::size_t>(system)], 1 + chance.below(10)});
      ++started;
      continue;
    }
    detail::Thread thread = threads.top();
    threads.pop();
    chance.add_text(thread.context, chance.length(55, 1, 4, 2048));
    Request r = detail::request(thread.context, chance.length(180, .8, 8, 1024), chance);
    r.priority = 1;
    thread.context = r.tokens;
    thread.time += chance.log_normal(40, 1);
    stream.requests.push_back(std::move(r));
    if (--thread.num_left > 0) threads.push(std::move(thread));
  }
  return stream;
}

/// Synthetic. A task begins each 4 units of time, for one of 8 agents with system prompts of 2048 tokens, and is told
/// in 200 tokens (sigma 0.7, 20 .. 2000). A branch of its work is 1 .. 8 requests: an answer of 60 tokens (0.7, 8 ..
/// 512), then the tool's 250 (1, 8 .. 4096) after 3 units (sigma 1). After one answer in five a second branch goes on
/// from the same tokens with another tool's text.
inline Stream agents(int num_requests) {
  detail::Chance chance(2);
  const std::vector<Tokens> systems = chance.texts(8, 2048);
  Stream stream{.name = "agents"};
  std::priority_queue<detail::Thread> threads;
  int number = 0;
  for (int started = 0; std::ssize(stream.requests) < num_requests;) {
    if (threads.empty() || threads.top().time > 4. * started) {
      Tokens context = systems[static_cast<std::size_t>(chance.zipf(8))];
      chance.add_text(context, chance.length(200, .7, 20, 2000));
      threads.push({4. * started++, number++, std::move(context), 1 + chance.below(8)});
      continue;
    }
    const detail::Thread thread = threads.top();
    threads.pop();
    Request r = detail::request(thread.context, chance.length(60, .7, 8, 512), chance);
    r.priority = 1;
    const int num_branches = thread.num_left == 1 ? 0 : chance.happens(20) ? 2 : 1;
    for (int branch = 0; branch < num_branches; ++branch) {
      detail::Thread next{thread.time + chance.log_normal(3, 1), number++, r.tokens, thread.num_left - 1};
      chance.add_text(next.context, chance.length(250, 1, 8, 4096));
      threads.push(std::move(next));
    }
    stream.requests.push_back(std::move(r));
  }
  return stream;
}

/// Synthetic. One of 16 instructions of 512 tokens (Zipf) and a text of 150 (sigma 0.7, 8 .. 2000) that is not seen
/// again, answered by beam search of width 4 in 64 tokens.
inline Stream beams(int num_requests) {
  detail::Chance chance(3);
  const std::vector<Tokens> instructions = chance.texts(16, 512);
  Stream stream{.name = "beam4"};
  for (int i = 0; i < num_requests; ++i) {
    Tokens prompt = instructions[static_cast<std::size_t>(chance.zipf(16))];
    chance.add_text(prompt, chance.length(150, .7, 8, 2000));
    Request r = detail::request(std::move(prompt), 64, chance);
    r.num_beams = 4;
    stream.requests.push_back(std::move(r));
  }
  return stream;
}

/// Synthetic. By turns 64 requests with one of 32 hot prefixes of 1024 tokens (Zipf) and 32 tokens of their own, and a
/// flood of 64 prompts of 2048 tokens that are seen once: 8,192 blocks of 16. All answers have 16 tokens.
inline Stream scan(int num_requests) {
  detail::Chance chance(4);
  const std::vector<Tokens> prefixes = chance.texts(32, 1024);
  Stream stream{.name = "scan"};
  for (int i = 0; i < num_requests; ++i) {
    const bool is_hot = i / 64 % 2 == 0;
    Tokens prompt = is_hot ? prefixes[static_cast<std::size_t>(chance.zipf(32))] : Tokens{};
    chance.add_text(prompt, is_hot ? 32 : 2048);
    stream.requests.push_back(detail::request(std::move(prompt), 16, chance));
    stream.requests.back().priority = is_hot;
  }
  return stream;
}

/// Synthetic. Prompts of 32 .. 255 tokens, none seen before, answered in 32: nothing is ever hit, so all that a cache
/// does is work.
inline Stream short_prompts(int num_requests) {
  detail::Chance chance(5);
  Stream stream{.name = "short"};
  for (int i = 0; i < num_requests; ++i)
    stream.requests.push_back(detail::request(chance.text(32 + chance.below(224)), 32, chance));
  return stream;
}

/// The requests that a trace admitted; each answers as many tokens as were appended to it one by one. Which, a trace knows
/// of the blocks that were published; the others are made up.
inline Stream recorded(std::string name, const pagedkv::SavedTrace& trace) {
  using pagedkv::TraceOp;
  detail::Chance chance(6);
  Stream stream{.name = std::move(name), .pool = trace.options};
  std::map<std::uint32_t, std::size_t> admitted;  // by sequence
  pagedkv::detail::PrefixCallReader call;
  for (auto records = std::span(trace.records); !records.empty(); records = records.subspan(1)) {
    const pagedkv::TraceRecord& record = records[0];
    if (record.op == TraceOp::admit && record.succeeded != 0 && call.read(records, 0)) {
      admitted[record.a] = stream.requests.size();
      stream.requests.push_back(detail::request({call.tokens().begin(), call.tokens().end()}, 0, chance));
      stream.requests.back().priority = call.options().retention.priority;
    }
    const auto at = admitted.find(record.a);
    if (at == admitted.end()) continue;
    Request& request = stream.requests[at->second];
    const auto num_tokens = std::ssize(request.tokens);
    if (record.op == TraceOp::append && record.succeeded != 0 && record.c == 1) chance.add_text(request.tokens, 1);
    if (record.op == TraceOp::publish && call.read(records, num_tokens)) {
      const auto first = static_cast<std::ptrdiff_t>(std::max<std::int64_t>(call.num_skipped(), request.num_prompt));
      const auto last = std::min(std::ssize(call.tokens()), num_tokens);
      if (first < last)
        std::copy(call.tokens().begin() + first, call.tokens().begin() + last, request.tokens.begin() + first);
    }
  }
  return stream;
}

}  // namespace bench
