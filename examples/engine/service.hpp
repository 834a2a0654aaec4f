// EngineService: one thread owns an engine and steps it; any thread hands in prompts and reads the texts that grow.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.hpp"
#include "engine/histogram.hpp"
#include "engine/sampling.hpp"
#include "engine/text/tokenizer.hpp"
#include "pagedkv/core/error.hpp"

namespace engine {

/// One token of one sample, and the text that it made certain.
struct Piece {
  int sample;
  std::int32_t token;
  std::string text;  // whole characters; empty while a character, or what may become a stop string, is open
  Finish finish;     // of the sample
  double logprob;
  std::vector<TokenLogprob> top;  // as many as the request asked for
};

/// How a request came to its end.
enum class End {
  none,      // not yet
  complete,  // every sample has finished
  closed,    // the service was closed before
  failed     // the engine broke
};

/// The client's end of a request, read by one thread. To drop it is to go: what still runs is aborted before the next
/// step.
class TextStream {
 public:
  struct News {
    std::vector<Piece> pieces;  // in the order of their steps
    End end = End::none;        // whatever but none: nothing will come after these pieces
  };

  TextStream(TextStream&&) = default;
  TextStream& operator=(TextStream&&) = delete;
  ~TextStream();

  /// Waits until there are news, but not longer than `patience`: then there are no pieces.
  News wait(std::chrono::milliseconds patience);

  /// Prompt tokens found in the prefix cache; known with the first piece.
  int num_cached() const;

 private:
  friend class EngineService;
  struct Channel;
  explicit TextStream(std::shared_ptr<Channel> channel);

  std::shared_ptr<Channel> channel_;
};

/// The service takes no request now.
class Unavailable : public pagedkv::Error {
 public:
  enum class Reason { overloaded, closing, failed };
  explicit Unavailable(Reason reason);
  Reason reason() const { return reason_; }

 private:
  Reason reason_;
};

struct ServiceOptions {
  int max_queue = 256;  // requests that wait for their first step; more are refused
};

/// What the service counted until now. Times are as its thread sees them: from submit() to a token.
struct ServiceStats {
  EngineStats engine;
  int num_waiting = 0, num_running = 0;            // requests
  int num_blocks = 0, num_free = 0, num_idle = 0;  // KV blocks; idle: cached, without an owner
  std::array<std::int64_t, 5> num_samples{};       // that ended, by Finish
  std::int64_t num_refused = 0;                    // requests that found the queue full
  Histogram first_token, inter_token, whole;       // to a request's first token, between two of a sample, to the end
  std::string failure;                             // why the engine broke; empty: it has not
};

/// Pieces wait in their request's own stream, at most params.n * params.max_tokens of them, so the engine never waits
/// for a client, and a client that stops reading holds up nobody.
class EngineService {
 public:
  /// From here until close(), nobody else touches `engine`. Both outlive the service.
  EngineService(Engine& engine, const Tokenizer& tokenizer, const ServiceOptions& options);
  /// close() without grace.
  ~EngineService();
  EngineService(const EngineService&) = delete;
  EngineService& operator=(const EngineService&) = delete;

  /// Waits until the engine took the request, a step at most. A text ends before the first of `stop` that it would
  /// hold. Throws BadInput where the request can never be served, and Unavailable.
  TextStream submit(std::vector<std::int32_t> prompt, SamplingParams params, std::vector<std::string> stop = {});

  /// Takes no request any more; returns when all have finished or, after `grace`, were told that they will not.
  void close(std::chrono::milliseconds grace);

  ServiceStats stats() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Submission;
  struct Live;
  class Worker;

  mutable std::mutex mutex_;
  std::condition_variable has_work_;   // for the thread
  std::condition_variable has_ended_;  // for close()
  std::vector<std::unique_ptr<Submission>> inbox_;
  ServiceStats stats_;
  bool is_closing_ = false;  // no request is taken any more
  bool shall_end_ = false;   // those that were taken are told so
  bool has_stopped_ = false;
  std::jthread thread_;  // last: it uses the others
};

}  // namespace engine
