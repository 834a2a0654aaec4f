// The thread behind EngineService: takes what was submitted, drops whom the client left, steps, and tells the news.
#include "engine/service.hpp"

#include <atomic>
#include <optional>
#include <unordered_map>
#include <utility>
#include <variant>

#include "engine/bad_input.hpp"
#include "engine/text/stop_strings.hpp"

namespace engine {

namespace {

const char* explanation_of(Unavailable::Reason reason) {
  switch (reason) {
    case Unavailable::Reason::overloaded:
      return "too many requests are waiting; try again later";
    case Unavailable::Reason::closing:
      return "the server is shutting down";
    default:
      return "the engine has failed";
  }
}

}  // namespace

Unavailable::Unavailable(Reason reason) : Error(explanation_of(reason)), reason_(reason) {}

/// What a request's client and the engine's thread share.
struct TextStream::Channel {
  struct Taken {};
  using Answer = std::variant<Taken, BadInput, Unavailable>;

  std::atomic<bool> is_abandoned = false;
  std::mutex mutex;
  std::condition_variable has_news;
  Answer answer;  // to submit(), which takes it
  bool is_answered = false;
  News news;
  int num_cached = 0;

  template <class Change>
  void tell(Change&& change) {
    {
      const std::lock_guard lock(mutex);
      change();
    }
    has_news.notify_one();
  }
  void answer_with(Answer what) {
    tell([&] {
      if (std::exchange(is_answered, true)) return;
      answer = std::move(what);
    });
  }
};

TextStream::TextStream(std::shared_ptr<Channel> channel) : channel_(std::move(channel)) {}

TextStream::~TextStream() {
  if (channel_) channel_->is_abandoned = true;
}

TextStream::News TextStream::wait(std::chrono::milliseconds patience) {
  std::unique_lock lock(channel_->mutex);
  News& news = channel_->news;
  channel_->has_news.wait_for(lock, patience, [&] { return !news.pieces.empty() || news.end != End::none; });
  return {.pieces = std::exchange(news.pieces, {}), .end = news.end};
}

int TextStream::num_cached() const {
  const std::lock_guard lock(channel_->mutex);
  return channel_->num_cached;
}

struct EngineService::Submission {
  std::vector<std::int32_t> prompt;
  SamplingParams params;
  StopStrings stops;
  std::shared_ptr<TextStream::Channel> channel;
  Clock::time_point time;

  // Nobody waits for ever, whatever happens to the thread.
  ~Submission() { channel->answer_with(Unavailable(Unavailable::Reason::failed)); }
};

/// A request that the engine works on.
struct EngineService::Live {
  struct Sample {
    StreamDecoder decoder;
    StopStrings stops;
    std::optional<Clock::time_point> last_token = {};
  };

  std::shared_ptr<TextStream::Channel> channel;
  std::vector<Sample> samples;
  int num_open;  // samples
  Clock::time_point start;
};

class EngineService::Worker {
 public:
  Worker(EngineService& service, Engine& engine, const Tokenizer& tokenizer, const ServiceOptions& options)
      : service_(service), engine_(engine), tokenizer_(tokenizer), options_(options) {}

  void run() {
    try {
      publish_stats();
      while (take_work()) {
        if (!engine_.is_idle()) digest(engine_.step());
        publish_stats();
        for (News& news : news_) tell(news);  // who hears of the end finds the blocks given back, and counted
        news_.clear();
      }
      for (const auto& [id, live] : live_) engine_.abort(id);
      observe_engine();
      end_all(End::closed, Unavailable::Reason::closing);
    } catch (const std::exception& error) {  // of step(), say: what state the engine is in nobody knows
      stats_.failure = error.what();
      end_all(End::failed, Unavailable::Reason::failed);
    }
  }

 private:
  // Waits for something to do. False when the service is to end.
  bool take_work() {
    std::vector<std::unique_ptr<Submission>> submissions;
    {
      std::unique_lock lock(service_.mutex_);
      service_.has_work_.wait(lock, [&] { return !live_.empty() || !service_.inbox_.empty() || service_.is_closing_; });
      if (service_.shall_end_ || (service_.is_closing_ && live_.empty() && service_.inbox_.empty())) return false;
      submissions.swap(service_.inbox_);
    }
    drop_abandoned();
    int num_waiting = count_waiting();
    for (const std::unique_ptr<Submission>& submission : submissions) num_waiting += take(*submission, num_waiting);
    return true;
  }

  // Hands a request to the engine, if it can be served.
  bool take(Submission& submission, int num_waiting) {
    TextStream::Channel& channel = *submission.channel;
    if (num_waiting >= options_.max_queue) {
      ++stats_.num_refused;
      publish_stats();
      channel.answer_with(Unavailable(Unavailable::Reason::overloaded));
      return false;
    }
    const int width = submission.params.width();
    int id = 0;
    try {
      id = engine_.submit(std::move(submission.prompt), std::move(submission.params));
    } catch (BadInput& error) {
      channel.answer_with(std::move(error));
      return false;
    }
    Live live{.channel = submission.channel, .samples = {}, .num_open = width, .start = submission.time};
    for (int i = 0; i < width; ++i)
      live.samples.push_back({.decoder = StreamDecoder(tokenizer_), .stops = submission.stops});
    live_.emplace(id, std::move(live));
    channel.answer_with(TextStream::Channel::Taken{});
    return true;
  }

  void drop_abandoned() {
    for (auto i = live_.begin(); i != live_.end();) {
      if (!i->second.channel->is_abandoned) {
        ++i;
        continue;
      }
      engine_.abort(i->first);
      stats_.num_samples[static_cast<std::size_t>(Finish::aborted)] += i->second.num_open;
      i = live_.erase(i);
    }
  }

  // A piece on its way to its client.
  struct News {
    std::shared_ptr<TextStream::Channel> channel;
    Piece piece;
    End end;
    int num_cached;
  };

  static void tell(News& news) {
    news.channel->tell([&] {
      news.channel->num_cached = news.num_cached;
      news.channel->news.pieces.push_back(std::move(news.piece));
      news.channel->news.end = news.end;
    });
  }

  void digest(std::span<const Event> events) {
    const Clock::time_point now = Clock::now();
    std::vector<std::pair<int, int>> stopped;  // the engine hears of these when its events were read
    std::vector<int> finished;
    for (const Event& event : events) {
      const int id = event.request->id;
      Live& live = live_.at(id);
      Live::Sample& sample = live.samples.at(static_cast<std::size_t>(event.sample));
      if (sample.stops.found()) continue;  // the step brought more than the text's end: guesses that were right
      Piece piece = piece_of(event, sample);
      if (event.finish == Finish::none && piece.finish == Finish::stop) stopped.emplace_back(id, event.sample);
      observe(event, live, now);
      if (piece.finish != Finish::none) {
        ++stats_.num_samples[static_cast<std::size_t>(piece.finish)];
        --live.num_open;
      }
      const End end = live.num_open == 0 ? End::complete : End::none;
      news_.push_back({live.channel, std::move(piece), end, event.request->num_cached});
      if (end == End::none) continue;
      stats_.whole.add(seconds(now - live.start));
      finished.push_back(id);
    }
    for (const auto& [id, sample] : stopped) engine_.stop(id, sample);
    for (const int id : finished) {
      engine_.forget(id);
      live_.erase(id);
    }
  }

  static Piece piece_of(const Event& event, Live::Sample& sample) {
    Piece piece{.sample = event.sample,
                .token = event.token,
                .text = {},
                .finish = event.finish,
                .logprob = event.logprob,
                .top = event.top};
    if (event.finish != Finish::eos) piece.text = sample.stops.push(sample.decoder.push(event.token));
    if (!sample.stops.found() && event.finish != Finish::none)
      piece.text += sample.stops.push(sample.decoder.flush()) + sample.stops.flush();
    if (sample.stops.found()) piece.finish = Finish::stop;
    return piece;
  }

  void observe(const Event& event, Live& live, Clock::time_point now) {
    auto& last = live.samples[static_cast<std::size_t>(event.sample)].last_token;
    if (last)
      stats_.inter_token.add(seconds(now - *last));
    else if (event.sample == 0)
      stats_.first_token.add(seconds(now - live.start));
    last = now;
  }

  int count_waiting() const {
    int num_waiting = 0;
    for (const auto& [id, live] : live_) num_waiting += engine_.request(id).state == State::waiting;
    return num_waiting;
  }

  void observe_engine() {
    stats_.engine = engine_.stats();
    stats_.num_blocks = engine_.blocks().num_blocks();
    stats_.num_free = engine_.blocks().num_free();
    stats_.num_idle = engine_.blocks().num_idle();
  }

  void publish_stats() {
    observe_engine();
    stats_.num_waiting = count_waiting();
    stats_.num_running = static_cast<int>(live_.size()) - stats_.num_waiting;
    const std::lock_guard lock(service_.mutex_);
    service_.stats_ = stats_;
  }

  // Tells everybody that there will be no more, and close() that nobody is left.
  void end_all(End end, Unavailable::Reason reason) {
    for (const auto& [id, live] : live_) stats_.num_samples[static_cast<std::size_t>(Finish::aborted)] += live.num_open;
    stats_.num_waiting = stats_.num_running = 0;
    std::vector<std::unique_ptr<Submission>> submissions;
    {
      const std::lock_guard lock(service_.mutex_);
      submissions.swap(service_.inbox_);
      service_.stats_ = stats_;
      service_.is_closing_ = true;
    }
    for (const auto& [id, live] : live_) live.channel->tell([&] { live.channel->news.end = end; });
    for (const std::unique_ptr<Submission>& submission : submissions)
      submission->channel->answer_with(Unavailable(reason));
    {
      const std::lock_guard lock(service_.mutex_);
      service_.has_stopped_ = true;
    }
    service_.has_ended_.notify_all();
  }

  static double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

  EngineService& service_;
  Engine& engine_;
  const Tokenizer& tokenizer_;
  const ServiceOptions options_;
  std::unordered_map<int, Live> live_;
  std::vector<News> news_;  // of the step that was digested
  ServiceStats stats_;
};

EngineService::EngineService(Engine& engine, const Tokenizer& tokenizer, const ServiceOptions& options)
    : thread_([this, &engine, &tokenizer, options] { Worker(*this, engine, tokenizer, options).run(); }) {}

EngineService::~EngineService() { close(std::chrono::milliseconds(0)); }

TextStream EngineService::submit(std::vector<std::int32_t> prompt, SamplingParams params,
                                 std::vector<std::string> stop) {
  const auto channel = std::make_shared<TextStream::Channel>();
  auto submission = std::make_unique<Submission>(std::move(prompt), std::move(params), StopStrings(std::move(stop)),
                                                 channel, Clock::now());
  {
    const std::lock_guard lock(mutex_);
    if (is_closing_)
      throw Unavailable(stats_.failure.empty() ? Unavailable::Reason::closing : Unavailable::Reason::failed);
    inbox_.push_back(std::move(submission));
  }
  has_work_.notify_one();
  std::unique_lock lock(channel->mutex);
  channel->has_news.wait(lock, [&] { return channel->is_answered; });
  if (auto* refusal = std::get_if<BadInput>(&channel->answer)) throw std::move(*refusal);
  if (auto* refusal = std::get_if<Unavailable>(&channel->answer)) throw std::move(*refusal);
  return TextStream(channel);
}

void EngineService::close(std::chrono::milliseconds grace) {
  std::unique_lock lock(mutex_);
  is_closing_ = true;
  has_work_.notify_one();
  if (has_ended_.wait_for(lock, grace, [this] { return has_stopped_; })) return;
  shall_end_ = true;
  has_ended_.wait(lock, [this] { return has_stopped_; });
}

ServiceStats EngineService::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

}  // namespace engine
