// Progress: one line about a batch of requests, written again and again on a terminal.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <unordered_map>

#include "engine/engine.hpp"
#include "engine/request.hpp"

namespace engine {

/// What the line says.
struct ProgressLine {
  std::int64_t num_done = 0, num_requests = 0;
  std::int64_t prompt_tokens = 0, output_tokens = 0;  // so far
  double share = 0;                                   // of the tokens that the requests may bring; 1: complete
  double seconds = 0;

  /// " 42%|########............| 107/256 [00:03<00:05, in 12345 tok/s, out 34567 tok/s]": time spent, time left.
  std::string text() const {
    constexpr std::size_t width = 20;
    const auto filled = static_cast<std::size_t>(share * width);
    const double left = share > 0 ? seconds * (1 - share) / share : 0, rate = seconds > 0 ? 1 / seconds : 0;
    char numbers[160];
    std::snprintf(numbers, sizeof numbers, "| %lld/%lld [%s<%s, in %.0f tok/s, out %.0f tok/s]",
                  static_cast<long long>(num_done), static_cast<long long>(num_requests), clock(seconds).c_str(),
                  share > 0 ? clock(left).c_str() : "?", static_cast<double>(prompt_tokens) * rate,
                  static_cast<double>(output_tokens) * rate);
    char percent[8];
    std::snprintf(percent, sizeof percent, "%3d%%|", static_cast<int>(100 * share));
    return percent + std::string(filled, '#') + std::string(width - filled, '.') + numbers;
  }

 private:
  static std::string clock(double seconds) {
    const auto whole = static_cast<long long>(seconds);
    char text[32];
    if (whole >= 3600)
      std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
    else
      std::snprintf(text, sizeof text, "%02lld:%02lld", whole / 60, whole % 60);
    return text;
  }
};

class Progress {
 public:
  explicit Progress(std::FILE* out) : out_(out) {}

  /// A request that the events will be about.
  void expect(const Request& request) {
    ++line_.num_requests;
    most_tokens_ += most_tokens(request);
  }

  void observe(const Event& event) {
    const Request& request = *event.request;
    const auto [found, is_first] = tracks_.try_emplace(request.id);
    Track& track = found->second;
    if (track.is_done) return;  // another sample ended in the same step, and the request with it
    if (is_first) line_.prompt_tokens += request.prompt_len - request.num_cached;
    ++track.num_tokens;
    ++line_.output_tokens;
    if (request.state != State::finished) return;
    std::int64_t num_generated = 0;  // beams tell their tokens at the end
    for (const Branch& branch : request.branches) num_generated += std::ssize(branch.tokens) - request.prompt_len;
    line_.output_tokens += num_generated - track.num_tokens;
    saved_tokens_ += most_tokens(request) - num_generated;
    track.is_done = true;
    ++line_.num_done;
  }

  /// Draws at most ten times a second, and the end.
  void draw() {
    const Clock::time_point now = Clock::now();
    const bool is_over = line_.num_done == line_.num_requests;
    if (!is_over && now - drawn_ < std::chrono::milliseconds(100)) return;
    drawn_ = now;
    line_.seconds = std::chrono::duration<double>(now - start_).count();
    line_.share = is_over ? 1 : share();
    std::fprintf(out_, "\r%s\x1b[K%s", line_.text().c_str(), is_over ? "\n" : "");
    std::fflush(out_);
  }

  const ProgressLine& line() const { return line_; }
  double share() const {
    const double done = static_cast<double>(line_.output_tokens + saved_tokens_);
    return most_tokens_ > 0 ? std::clamp(done / static_cast<double>(most_tokens_), 0., 1.) : 0;
  }

 private:
  using Clock = std::chrono::steady_clock;

  static std::int64_t most_tokens(const Request& request) {
    return std::int64_t{request.params.width()} * request.params.max_tokens;
  }
  struct Track {
    std::int64_t num_tokens = 0;
    bool is_done = false;
  };

  std::FILE* out_;
  ProgressLine line_;
  std::int64_t most_tokens_ = 0, saved_tokens_ = 0;  // saved: those of samples that ended early
  std::unordered_map<int, Track> tracks_;            // of requests that have brought something
  Clock::time_point start_ = Clock::now(), drawn_ = {};
};

}  // namespace engine
