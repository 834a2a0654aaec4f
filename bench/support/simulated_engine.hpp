// What an inference engine asks of the cache, without a model: continuous batching, chunked prompts, preemption, beams.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <utility>
#include <vector>

#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/prefix_cache.hpp"
#include "pagedkv/cache/trace.hpp"
#include "support/request_streams.hpp"

namespace bench {

using namespace pagedkv;

inline constexpr int max_running = 32;        // requests
inline constexpr int tokens_per_step = 4096;  // prompts are computed in chunks
inline constexpr int watermark = 64;          // blocks kept for those that run

struct Figures {
  PrefixStats stats;
  std::int64_t num_steps = 0;
  std::int64_t num_preempted = 0;
  std::int64_t num_copies = 0;
  std::int64_t num_uploaded = 0;  // entries of block tables that changed
  std::int64_t num_whole = 0;     // uploads of all rows, because the list of changes was too short
  std::int64_t num_entries = 0;   // of all tables of all steps
  std::int64_t num_records = 0;   // of the trace, 16 bytes each
  double seconds = 0;             // of CPU

  double hit_rate() const {
    return static_cast<double>(stats.hit_tokens) /
           static_cast<double>(std::max<std::int64_t>(1, stats.hit_tokens + stats.missed_tokens));
  }
};

/// Continuous batching: each step gives one token to every answer, computes prompts in chunks, admits in order of
/// arrival, and preempts the youngest request when blocks run out.
template <class Cache>
class Engine {
 public:
  Engine(const Stream& stream, bool caches, Trace* trace)
      : caches_(caches),
        blocks_(stream.pool),
        tables_({.max_seqs = 4 * max_running,
                 .max_blocks_per_seq = longest(stream),
                 .block_size = stream.pool.block_size}) {
    blocks_.record_to(trace);
    for (const Request& request : stream.requests) waiting_.push_back({&request, request.num_prompt});
  }

  bool is_done() const { return waiting_.empty() && running_.empty(); }

  void step() {
    left_ = tokens_per_step;
    for (std::size_t i = 0; i < running_.size(); ++i) advance(i);
    admit();
    upload();
    figures_.num_copies += std::ssize(plan_.copies());
    plan_.commit();
    publish();
    finish();
    ++figures_.num_steps;
  }

  Figures figures() const {
    Figures figures = figures_;
    figures.stats = cache_.stats();
    return figures;
  }

 private:
  struct Waiting {
    const Request* request;
    int num_prompt;  // more than the request's once it has been preempted
  };
  struct Running {
    const Request* request;
    int num_prompt;
    std::vector<Sequence> beams;
    std::vector<int> rows = {};
    std::vector<int> q_lens = {};  // of this step

    bool answers() const { return beams[0].size() >= num_prompt; }
  };

  static int longest(const Stream& stream) {
    std::size_t num_tokens = 1;
    for (const Request& request : stream.requests) num_tokens = std::max(num_tokens, request.tokens.size());
    return ceil_div(static_cast<int>(num_tokens), stream.pool.block_size);
  }

  // Appends to all beams; whoever is younger makes room. The youngest itself is preempted if that is not enough.
  void advance(std::size_t index) {
    const Running& first = running_[index];
    const int num_tokens = first.answers() ? 1 : std::min(left_, first.num_prompt - first.beams[0].size());
    std::fill(running_[index].q_lens.begin(), running_[index].q_lens.end(), num_tokens);
    for (std::size_t beam = 0; beam < running_[index].beams.size(); ++beam) {
      while (!running_[index].beams[beam].append(num_tokens, plan_)) {
        preempt_youngest();
        if (index == running_.size()) return;
      }
      left_ = std::max(0, left_ - num_tokens);
    }
  }

  void preempt_youngest() {
    Running& youngest = running_.back();
    const bool starts_again = youngest.request->num_beams > 1;
    waiting_.push_front({youngest.request, starts_again ? youngest.request->num_prompt
                                                        : std::max(youngest.num_prompt, youngest.beams[0].size())});
    leave(youngest);
    running_.pop_back();
    ++figures_.num_preempted;
  }

  void leave(const Running& r) {
    for (const int row : r.rows) tables_.remove(row);
  }

  void admit() {
    while (!waiting_.empty() && std::ssize(running_) < max_running && left_ > 0) {
      const auto [request, num_prompt] = waiting_.front();
      const std::span prompt = std::span(request->tokens).first(static_cast<std::size_t>(num_prompt));
      AdmitOptions options;
      options.no_read = options.no_write = !caches_;
      options.twins = Twins::wait;
      options.retention.priority = request->priority;
      options.max_append = left_;
      options.watermark = running_.empty() ? 0 : watermark;
      Sequence sequence{blocks_};
      const Admission admission = cache_.admit(prompt, sequence, plan_, options);
      if (!admission && admission.refusal() != Refusal::never) return;
      waiting_.pop_front();
      if (!admission) continue;
      left_ -= admission->appended;
      Running r{.request = request, .num_prompt = num_prompt, .beams = {}};
      r.beams.push_back(std::move(sequence));
      r.q_lens = {admission->appended};
      running_.push_back(std::move(r));
    }
  }

  void upload() {
    for (Running& r : running_) {
      for (std::size_t beam = 0; beam < r.beams.size(); ++beam) {
        figures_.num_entries += r.beams[beam].table().num_blocks();
        if (beam < r.rows.size()) {
          tables_.update(r.rows[beam], r.beams[beam], r.q_lens[beam]);
        } else {
          r.rows.push_back(tables_.add(r.beams[beam], r.q_lens[beam]));
        }
      }
    }
    const auto changes = tables_.changes().since(seen_);
    figures_.num_uploaded +=
        changes ? std::ssize(*changes) : std::int64_t{tables_.max_blocks_per_seq()} * tables_.num_seqs();
    figures_.num_whole += !changes;
    seen_ = tables_.changes().version();
  }

  void publish() {
    for (Running& r : running_) {
      if (r.beams.size() == 1) cache_.publish(r.request->tokens, r.beams[0], {}, {.priority = r.request->priority});
      if (r.request->num_beams == 1 || !r.answers()) continue;
      while (std::ssize(r.beams) < r.request->num_beams) {
        r.beams.push_back(r.beams[0].fork());
        r.q_lens.push_back(0);
      }
      if (r.beams[0].size() % 4 == 0) {  // one hypothesis wins over another
        const auto loser = static_cast<std::size_t>(1 + r.beams[0].size() / 4 % (r.request->num_beams - 1));
        r.beams[loser] = r.beams[0].fork();
      }
    }
  }

  void finish() {
    std::erase_if(running_, [this](const Running& r) {
      if (r.beams[0].size() < std::ssize(r.request->tokens)) return false;
      leave(r);
      return true;
    });
  }

  bool caches_;
  BlockAllocator blocks_;
  Cache cache_{blocks_};
  StepPlan plan_;
  BatchTables tables_;
  TableVersion seen_;
  std::deque<Waiting> waiting_;
  std::vector<Running> running_;  // the oldest first
  int left_ = 0;                  // tokens that this step may still compute
  Figures figures_;
};

}  // namespace bench
