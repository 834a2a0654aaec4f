// The cache in your engine: admission, decoding, samples of one prompt, preemption, block tables by deltas.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "letter_cache.hpp"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/prefix_cache.hpp"

using namespace pagedkv;

namespace {

constexpr int num_blocks = 16, block_size = 4, max_seqs = 8, watermark = 2;

std::vector<std::int32_t> tokens_of(const std::string& text) { return {text.begin(), text.end()}; }

/// The model: after a letter comes the next one of the alphabet.
char next_letter(const std::string& text) {
  const char last = text.back();
  return last >= 'a' && last < 'z' ? static_cast<char>(last + 1) : 'a';
}

struct Request {
  std::string text;        // the prompt and what was sampled; the newest letter has no K and V yet
  std::size_t wanted_len;  // of the text
  int num_samples;
  Sequence sequence;
  int row = -1;  // in the batch tables
};

bool is_done(const Request& r) { return r.text.size() >= r.wanted_len; }

class Engine {
 public:
  void submit(const std::string& prompt, std::size_t num_new, int num_samples = 1) {
    waiting_.push_back({prompt, prompt.size() + num_new, num_samples, Sequence{blocks_}});
  }

  // [step]
  /// False when all requests are done.
  bool run_step() {
    std::string letters;  // whose K and V this step computes, in the order of the appends
    for (std::size_t i = 0; i < running_.size(); ++i) {
      while (i < running_.size() && !running_[i].sequence.append(1, step_)) preempt_newest();  // perhaps this one
      if (i < running_.size()) letters += running_[i].text.back();
    }
    while (!waiting_.empty() && std::ssize(running_) + waiting_.front().num_samples <= max_seqs) {
      Request& next = waiting_.front();
      const Admission admission =
          prefixes_.admit(tokens_of(next.text), next.sequence, step_,
                          {.twins = Twins::wait, .watermark = running_.empty() ? 0 : watermark});
      if (!admission && admission.refusal() != Refusal::never) break;  // later; nothing has changed
      if (admission) {
        letters += next.text.substr(static_cast<std::size_t>(admission->cached));
        running_.push_back(std::move(next));
      }  // never: a real engine tells its client
      waiting_.pop_front();
    }

    update_tables();                            // before the commit: what is not committed yet is this step's queries
    num_copies_ += cache_.run(step_, letters);  // your model: copy blocks; each layer: store K and V, attend; commit

    const std::size_t num_computed = running_.size();
    for (std::size_t i = 0; i < num_computed; ++i) {
      prefixes_.publish(tokens_of(running_[i].text), running_[i].sequence);
      while (running_[i].num_samples > 1) {  // the prompt is computed once; its samples share it
        const int sample = --running_[i].num_samples;
        running_.push_back({running_[i].text, running_[i].wanted_len, 1, running_[i].sequence.fork()});
        running_.back().text += static_cast<char>('0' + sample);
      }
      running_[i].text += next_letter(running_[i].text);
    }
    for (const Request& r : running_)
      if (is_done(r)) finish(r);
    std::erase_if(running_, is_done);  // a sequence that dies gives its blocks back; published ones stay findable
    ++num_steps_;
    return !running_.empty() || !waiting_.empty();
  }
  // [step]

  void print_figures() const {
    std::printf("%d steps, %d blocks copied, %d of %d letters to be admitted were cached\n", num_steps_, num_copies_,
                static_cast<int>(prefixes_.stats().hit_tokens),
                static_cast<int>(prefixes_.stats().hit_tokens + prefixes_.stats().missed_tokens));
    std::printf("block tables: %d entries sent instead of %d\n", num_sent_, num_whole_);
    std::printf("%d blocks in use, %d idle, %d free\n", blocks_.num_used(), blocks_.num_idle(), blocks_.num_free());
  }

 private:
  // Its blocks go, its text stays: it will be admitted again, mostly from its own blocks.
  void preempt_newest() {
    Request newest = std::move(running_.back());
    running_.pop_back();
    if (newest.row >= 0) tables_.remove(std::exchange(newest.row, -1));
    newest.sequence.truncate(0);  // and the rows that it has in this step die
    std::printf("  step %2d: out of blocks, \"%s\" has to wait\n", num_steps_, newest.text.c_str());
    waiting_.push_front(std::move(newest));
  }

  void update_tables() {
    for (Request& r : running_) {
      const int q_len = r.sequence.size() - r.sequence.num_committed();
      if (r.row < 0) {
        r.row = tables_.add(r.sequence, q_len);
      } else {
        tables_.update(r.row, r.sequence, q_len);
      }
    }
    // [deltas]
    const auto changes = tables_.changes().since(uploaded_);  // what a copy on a device lacks; nullopt: all
    num_sent_ += changes ? static_cast<int>(changes->size()) : num_entries();
    num_whole_ += num_entries();
    uploaded_ = tables_.changes().version();
    // [deltas]
  }

  void finish(const Request& r) {
    tables_.remove(r.row);
    // Read through the block table, so a wrong block would show; the newest letter has no K and V.
    std::printf("  step %2d: \"%s%c\"\n", num_steps_, cache_.read(r.sequence).c_str(), r.text.back());
  }

  int num_entries() const { return tables_.num_seqs() * tables_.max_blocks_per_seq(); }

  // [members]
  BlockAllocator blocks_{{.num_blocks = num_blocks, .block_size = block_size}};
  PrefixCache prefixes_{blocks_};  // dies before the allocator, and after all sequences
  BatchTables tables_{{.max_seqs = max_seqs, .max_blocks_per_seq = num_blocks, .block_size = block_size}};
  TableVersion uploaded_;
  StepPlan step_;
  std::deque<Request> waiting_;
  std::vector<Request> running_;
  // [members]
  LetterCache cache_{num_blocks, block_size};
  int num_steps_ = 0, num_copies_ = 0, num_sent_ = 0, num_whole_ = 0;
};

}  // namespace

int main() {
  Engine engine;
  engine.submit("be brief. name three letters: ", 6, 3);
  engine.submit("be brief. what comes after f", 16);
  engine.submit("be brief. name a river: p", 16);
  while (engine.run_step()) {
  }
  engine.print_figures();
}
