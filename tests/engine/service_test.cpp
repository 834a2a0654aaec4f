// The service in front of an engine: many threads submit, read, leave, overload it and close it; nobody waits for ever,
// and every block comes back.
#include "engine/service.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <future>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/small_tokenizer.hpp"
#include "support/fake_engine.hpp"
#include "support/watchdog.hpp"

using namespace std::chrono_literals;
using engine::End;
using engine::EngineService;
using engine::Finish;
using engine::Piece;
using engine::SamplingParams;
using engine::TextStream;
using engine::Unavailable;
using pagedkv_test::expected_of;
using pagedkv_test::FakeEngine;
using pagedkv_test::prompt_of;
using pagedkv_test::Tokens;
using pagedkv_test::Watchdog;

namespace {

const engine::Tokenizer& tokenizer() {  // whose token i below 256 is byte i
  static const engine::Tokenizer it = engine_test::load_tokenizer(engine_test::small_tokenizer());
  return it;
}

/// Behind a prompt of one token it says a text, byte by byte. Where it is held, each step waits to be allowed.
class Speaker final : public engine::LanguageModel {
 public:
  static constexpr int vocab = 256;
  explicit Speaker(std::string text) : text_(std::move(text)) {}

  std::span<const float> forward(const engine::Batch& batch) override {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return num_allowed_ > 0; });
      --num_allowed_;
      if (is_broken_) throw pagedkv::CudaError("the device has gone");
    }
    logits_.assign(batch.logit_rows.size() * vocab, 0.0f);
    for (std::size_t i = 0; i < batch.logit_rows.size(); ++i) {
      const auto position = static_cast<std::size_t>(batch.positions[static_cast<std::size_t>(batch.logit_rows[i])]);
      const char said = position < text_.size() ? text_[position] : '.';
      logits_[i * vocab + static_cast<unsigned char>(said)] = 9;
    }
    return logits_;
  }
  std::int64_t kv_bytes_per_token() const override { return 4; }
  std::string device() const override { return "fake"; }

  void hold() {
    const std::lock_guard lock(mutex_);
    num_allowed_ = 0;
  }
  void allow(int num_steps) {
    {
      const std::lock_guard lock(mutex_);
      num_allowed_ += num_steps;
    }
    changed_.notify_one();
  }
  void break_down() {
    const std::lock_guard lock(mutex_);
    is_broken_ = true;
  }

 private:
  std::string text_;
  std::vector<float> logits_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int num_allowed_ = std::numeric_limits<int>::max() / 2;
  bool is_broken_ = false;
};

struct Spoken {
  Speaker model;
  engine::Engine engine;

  explicit Spoken(std::string text, int max_seqs = 4, int max_drafts = 0)
      : model(std::move(text)),
        engine(config(), model,
               {.num_blocks = 1024, .scheduler = {.max_seqs = max_seqs}, .drafts = {.max_drafts = max_drafts}}) {}
  ~Spoken() {
    CHECK_NOTHROW(engine.check_integrity());
    CHECK(engine.blocks().num_used() == 0);
  }
  static engine::ModelConfig config() {
    engine::ModelConfig config;
    config.vocab = Speaker::vocab;
    config.max_positions = 4096;
    return config;
  }
  /// Steps go on one by one, slowly, until the engine has answered.
  TextStream submit_while_held(EngineService& service, const SamplingParams& params) {
    auto answer = std::async(std::launch::async, [&] { return service.submit({'>'}, params); });
    while (answer.wait_for(5ms) != std::future_status::ready) model.allow(1);
    return answer.get();
  }
};

struct Answer {
  std::vector<std::string> texts;
  std::vector<Tokens> tokens;
  std::vector<Finish> finishes;
  End end = End::none;
};

Answer read_all(TextStream& stream, int num_samples = 1) {
  const auto n = static_cast<std::size_t>(num_samples);
  Answer answer{.texts = std::vector<std::string>(n), .tokens = std::vector<Tokens>(n), .finishes = {}};
  answer.finishes.resize(n, Finish::none);
  while (answer.end == End::none) {
    const TextStream::News news = stream.wait(1s);
    for (const Piece& piece : news.pieces) {
      const auto i = static_cast<std::size_t>(piece.sample);
      CHECK(answer.finishes.at(i) == Finish::none);  // nothing comes behind a sample's end
      answer.texts[i] += piece.text;
      answer.tokens[i].push_back(piece.token);
      answer.finishes[i] = piece.finish;
    }
    answer.end = news.end;
  }
  return answer;
}

Answer read_all(TextStream&& stream, int num_samples = 1) { return read_all(stream, num_samples); }

}  // namespace

TEST_CASE("a client gets the tokens that the engine would generate for it alone") {
  const Watchdog watchdog("one client");
  FakeEngine engine({.num_blocks = 64, .block_size = 4}, true);
  EngineService service(engine.engine, tokenizer(), {});
  for (int first = 2; first < 8; ++first) {
    const Tokens prompt = prompt_of(7, first);
    const SamplingParams params{.max_tokens = 20, .n = 3, .temperature = 1, .seed = 5};
    const Answer answer = read_all(service.submit(prompt, params), 3);
    CHECK(answer.end == End::complete);
    for (int i = 0; i < 3; ++i) {
      const auto at = static_cast<std::size_t>(i);
      CHECK(answer.tokens[at] == expected_of(prompt, params, i, true));
      CHECK(answer.finishes[at] == (answer.tokens[at].back() == pagedkv_test::eos ? Finish::eos : Finish::length));
    }
  }
}

TEST_CASE("prompt tokens that were cached are told") {
  const Watchdog watchdog("cached tokens");
  FakeEngine engine({.num_blocks = 64, .block_size = 4});
  EngineService service(engine.engine, tokenizer(), {});
  for (const int expected : {0, 8}) {
    TextStream stream = service.submit(prompt_of(11), {.max_tokens = 2});
    read_all(stream);
    CHECK(stream.num_cached() == expected);
  }
}

TEST_CASE("characters come whole, and one that never becomes whole comes as U+FFFD") {
  const Watchdog watchdog("characters");
  Spoken spoken("na\xc3\xafve \xe2\x82");
  EngineService service(spoken.engine, tokenizer(), {});
  TextStream stream = service.submit({'>'}, {.max_tokens = 9});
  std::vector<std::string> texts;
  for (End end = End::none; end == End::none;) {
    const TextStream::News news = stream.wait(1s);
    for (const Piece& piece : news.pieces) texts.push_back(piece.text);
    end = news.end;
  }
  CHECK(texts == std::vector<std::string>{"n", "a", "", "\xc3\xaf", "v", "e", " ", "", "\uFFFD"});
}

TEST_CASE("a text ends before its stop string, whose beginning was held back") {
  const Watchdog watchdog("stop strings");
  Spoken spoken("one two three");
  EngineService service(spoken.engine, tokenizer(), {});
  const Answer answer = read_all(service.submit({'>'}, {.max_tokens = 13}, {"xyz", "two t"}));
  CHECK(answer.texts[0] == "one ");
  CHECK(answer.finishes[0] == Finish::stop);
  CHECK(answer.end == End::complete);
  CHECK(answer.tokens[0].size() == 9);  // no step was spent behind it

  const Answer other = read_all(service.submit({'>'}, {.max_tokens = 7}, {"two t"}));
  CHECK(other.texts[0] == "one two");  // what might have become the stop string comes at the end
  CHECK(other.finishes[0] == Finish::length);

  const Answer both = read_all(service.submit({'>'}, {.max_tokens = 13, .n = 2}, {"e t"}), 2);
  CHECK(both.texts == std::vector<std::string>{"on", "on"});
  CHECK(spoken.engine.blocks().num_used() == 0);
}

TEST_CASE("what was guessed right behind a stop string is not told, and the text ends once") {
  const Watchdog watchdog("stop strings and drafts");
  const std::string text = "one two one two one two one two one two";
  Spoken spoken(text, 4, 6);
  {
    EngineService service(spoken.engine, tokenizer(), {});
    for (std::size_t length = 9; length < 20; ++length) {
      const std::string stop = text.substr(3, length);
      const Answer answer = read_all(service.submit({'>'}, {.max_tokens = 39}, {stop}));
      CHECK(answer.texts[0] == "one");
      CHECK(answer.tokens[0].size() == 3 + length);
      CHECK(answer.end == End::complete);
    }
    service.close(1h);
    CHECK(service.stats().num_samples[static_cast<std::size_t>(Finish::stop)] == 11);
  }
  CHECK(spoken.engine.stats().accepted_drafts > 0);
}

TEST_CASE("a token that ends the text is not part of it") {
  const Watchdog watchdog("stop ids");
  Spoken spoken("one!two");
  EngineService service(spoken.engine, tokenizer(), {});
  SamplingParams params{.max_tokens = 7};
  params.stop_ids = {'!'};
  const Answer answer = read_all(service.submit({'>'}, params));
  CHECK(answer.texts[0] == "one");
  CHECK(answer.finishes[0] == Finish::eos);
}

TEST_CASE("a request that can never be served is refused to its client, and others go on") {
  const Watchdog watchdog("refusals");
  FakeEngine engine({.num_blocks = 16, .block_size = 4});
  EngineService service(engine.engine, tokenizer(), {});
  TextStream stream = service.submit(prompt_of(5), {.max_tokens = 20});
  CHECK_THROWS_AS(service.submit({}, {}), engine::BadInput);
  CHECK_THROWS_AS(service.submit({-1}, {}), engine::BadInput);
  CHECK_THROWS_AS(service.submit(prompt_of(5), {.n = 1 << 30}), engine::BadInput);
  CHECK_THROWS_AS(service.submit(prompt_of(80), {.max_tokens = 8}), engine::BadInput);
  CHECK_THROWS_AS(service.submit(prompt_of(5), {}, {"", "a"}), engine::BadInput);
  CHECK(read_all(stream).tokens[0] == expected_of(prompt_of(5), 20));
}

TEST_CASE("with the queue full, a request is refused; with room again, it is taken") {
  const Watchdog watchdog("overload");
  Spoken spoken("", 1);
  EngineService service(spoken.engine, tokenizer(), {.max_queue = 1});
  spoken.model.hold();
  {
    TextStream running = spoken.submit_while_held(service, {.max_tokens = 4000});
    TextStream waiting = spoken.submit_while_held(service, {.max_tokens = 5});
    const auto refused = [&] { spoken.submit_while_held(service, {.max_tokens = 5}); };
    CHECK_THROWS_WITH_AS(refused(), "too many requests are waiting; try again later", Unavailable);
    CHECK(service.stats().num_refused == 1);
  }  // both leave
  spoken.model.allow(1 << 20);
  CHECK(read_all(service.submit({'>'}, {.max_tokens = 5})).end == End::complete);
}

TEST_CASE("a client that leaves takes its request along: the blocks are back while others run") {
  const Watchdog watchdog("leaving");
  Spoken spoken("");
  EngineService service(spoken.engine, tokenizer(), {});
  spoken.model.hold();
  TextStream staying = spoken.submit_while_held(service, {.max_tokens = 3000});
  {
    const TextStream leaving = spoken.submit_while_held(service, {.max_tokens = 3000, .n = 3});
  }
  while (service.stats().num_samples[static_cast<std::size_t>(Finish::aborted)] != 3) {
    spoken.model.allow(1);
    std::this_thread::sleep_for(1ms);
  }
  CHECK(service.stats().num_running == 1);
  spoken.model.allow(1 << 20);
  CHECK(read_all(staying).tokens[0].size() == 3000);
}

TEST_CASE("a client that does not read holds up nobody, and may read later") {
  const Watchdog watchdog("a silent client");
  FakeEngine engine({.num_blocks = 64, .block_size = 4});
  EngineService service(engine.engine, tokenizer(), {});
  TextStream silent = service.submit(prompt_of(5), {.max_tokens = 60});
  for (int i = 0; i < 20; ++i)
    CHECK(read_all(service.submit(prompt_of(6), {.max_tokens = 30})).tokens[0] == expected_of(prompt_of(6), 30));
  CHECK(read_all(silent).tokens[0] == expected_of(prompt_of(5), 60));
}

TEST_CASE("closing with grace lets those finish that were taken, and takes no more") {
  const Watchdog watchdog("closing with grace");
  Spoken spoken("", 1);
  EngineService service(spoken.engine, tokenizer(), {});
  spoken.model.hold();
  TextStream running = spoken.submit_while_held(service, {.max_tokens = 2000});
  TextStream waiting = spoken.submit_while_held(service, {.max_tokens = 10});
  auto closed = std::async(std::launch::async, [&] { service.close(1h); });
  for (bool is_refused = false; !is_refused;) {  // as soon as close() has begun
    try {
      spoken.submit_while_held(service, {.max_tokens = 1});
    } catch (const Unavailable& error) {
      CHECK(error.reason() == Unavailable::Reason::closing);
      is_refused = true;
    }
  }
  spoken.model.allow(1 << 20);
  CHECK(read_all(running).tokens[0].size() == 2000);
  CHECK(read_all(waiting).tokens[0].size() == 10);
  closed.get();
}

TEST_CASE("closing without grace tells those that run and those that wait, and gives their blocks back") {
  const Watchdog watchdog("closing without grace");
  Spoken spoken("", 1);
  EngineService service(spoken.engine, tokenizer(), {});
  spoken.model.hold();
  TextStream running = spoken.submit_while_held(service, {.max_tokens = 3000});
  TextStream waiting = spoken.submit_while_held(service, {.max_tokens = 10});
  auto closed = std::async(std::launch::async, [&] { service.close(0ms); });
  while (closed.wait_for(1ms) != std::future_status::ready) spoken.model.allow(1);
  CHECK(read_all(running).end == End::closed);
  CHECK(read_all(waiting).end == End::closed);
  CHECK(read_all(waiting).tokens[0].empty());
  CHECK_THROWS_AS(service.submit({'>'}, {}), Unavailable);
  CHECK(service.stats().num_free + service.stats().num_idle == 1024);
}

TEST_CASE("when the engine breaks, everybody is told, and so is who comes later") {
  const Watchdog watchdog("a broken engine");
  Speaker model("");
  engine::Engine engine(Spoken::config(), model, {.num_blocks = 1024});
  EngineService service(engine, tokenizer(), {});
  model.hold();
  TextStream stream = service.submit({'>'}, {.max_tokens = 4000});  // an idle engine answers before its first step
  model.break_down();
  model.allow(1);
  CHECK(read_all(stream).end == End::failed);
  CHECK(service.stats().failure == "the device has gone");  // who hears of the end finds it counted
  try {
    service.submit({'>'}, {});
    CHECK(false);
  } catch (const Unavailable& error) {
    CHECK(error.reason() == Unavailable::Reason::failed);
  }
  service.close(1h);
}

TEST_CASE("a stream may outlive its service") {
  const Watchdog watchdog("a late stream");
  FakeEngine engine({.num_blocks = 64, .block_size = 4});
  auto service = std::make_unique<EngineService>(engine.engine, tokenizer(), engine::ServiceOptions{});
  TextStream stream = service->submit(prompt_of(5), {.max_tokens = 80});
  service.reset();
  CHECK(read_all(stream).end != End::none);
}

TEST_CASE("clients of many threads come, read, and leave when they like: those that stay get their texts") {
  const Watchdog watchdog("many clients", 60s);
  FakeEngine engine({.num_blocks = 40, .block_size = 4, .scheduler = {.max_batched_tokens = 16, .max_seqs = 6}});
  EngineService service(engine.engine, tokenizer(), {.max_queue = 6});
  std::atomic<int> num_wrong = 0, num_whole = 0, num_left = 0, num_refused = 0;
  const auto client = [&](unsigned seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < 60; ++i) {
      const Tokens prompt = prompt_of(1 + static_cast<int>(random() % 30), static_cast<int>(random() % 50));
      const SamplingParams params{.max_tokens = 1 + static_cast<int>(random() % 30),
                                  .n = 1 + static_cast<int>(random() % 3),
                                  .temperature = 1,
                                  .seed = random()};
      try {
        TextStream stream = service.submit(prompt, params);
        if (random() % 2 == 0) {
          if (random() % 2 == 0) stream.wait(std::chrono::milliseconds(random() % 3));
          ++num_left;
          continue;
        }
        const Answer answer = read_all(stream, params.n);
        for (int sample = 0; sample < params.n; ++sample)
          num_wrong += answer.tokens[static_cast<std::size_t>(sample)] != expected_of(prompt, params, sample);
        ++num_whole;
      } catch (const Unavailable&) {
        ++num_refused;
      }
    }
  };
  {
    std::vector<std::jthread> clients;
    for (unsigned seed = 0; seed < 8; ++seed) clients.emplace_back(client, seed);
  }
  CHECK(num_wrong == 0);
  CHECK(num_whole + num_left + num_refused == 8 * 60);
  CHECK(num_whole > 0);
  CHECK(num_left > 0);
  service.close(1h);
  CHECK(engine.engine.blocks().num_used() == 0);
  CHECK(service.stats().first_token.counts != engine::Histogram{}.counts);
}
