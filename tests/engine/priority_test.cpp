// The order of service: by priority, then by arrival; who is admitted, who is pushed out, who may share a prefix.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "support/fake_engine.hpp"
#include "support/random.hpp"

using namespace engine;
using namespace pagedkv_test;

TEST_CASE("sooner priorities come first, equal ones in the order of arrival") {
  FakeEngine engine({.num_blocks = 64, .block_size = 4, .scheduler = {.max_seqs = 1}});
  for (const int priority : {0, 2, 1, -3, 1, 2})
    engine->submit(prompt_of(4), {.max_tokens = 1}, {.priority = priority});
  std::vector<int> order;
  engine->run([&](const Event& event) { order.push_back(event.request->id); });
  CHECK(order == std::vector{3, 0, 2, 4, 1, 5});
}

TEST_CASE("whoever lacks blocks pushes out the lowest priority, though it came first") {
  FakeEngine engine({.num_blocks = 12, .block_size = 2, .prefix_cache = false});
  const int low = engine->submit(prompt_of(6, 0), {.max_tokens = 12}, {.priority = 5});
  engine->step();
  const int high = engine->submit(prompt_of(6, 1), {.max_tokens = 12}, {.priority = 1});
  engine->run();
  CHECK(engine->request(low).num_preempted > 0);
  CHECK(engine->request(high).num_preempted == 0);
  for (const int id : {low, high}) CHECK(engine.generated(id) == expected_of(prompt_of(6, id), 12));
}

TEST_CASE("equals are admitted as they arrived, and whoever is pushed out was the last of those who ran") {
  std::int64_t num_preemptions = 0;
  for (std::uint64_t load = 0; load < 150; ++load) {
    CAPTURE(load);
    Random random(load);
    FakeEngine engine({.num_blocks = random.between(12, 20),
                       .block_size = 2,
                       .prefix_cache = load % 2 == 0,
                       .scheduler = {.max_batched_tokens = random.between(4, 30),
                                     .max_seqs = random.between(2, 4),
                                     .preemption = load % 3 == 0 ? Preemption::swap : Preemption::recompute},
                       .num_host_blocks = 30});
    std::vector<int> ids, num_preempted;
    std::map<int, std::vector<int>> admitted;  // by priority
    const auto is_alive = [&](int id) { return engine->request(id).state != State::finished; };
    const auto step = [&] {
      engine->step();
      for (const int id : ids) {
        const Request& request = engine->request(id);
        auto& order = admitted[request.priority];
        if (engine.is_running(id) && std::ranges::find(order, id) == order.end()) order.push_back(id);
        if (request.num_preempted == num_preempted[static_cast<std::size_t>(id)]) continue;
        num_preempted[static_cast<std::size_t>(id)] = request.num_preempted;
        for (const int other : ids)
          if (is_alive(other) && engine.is_running(other)) CHECK(Request::is_sooner(&engine->request(other), &request));
      }
    };
    for (int i = 0; i < 12; ++i) {
      ids.push_back(engine->submit(prompt_of(random.between(1, 10), i), {.max_tokens = random.between(1, 12)},
                                   {.priority = random.between(0, 2)}));
      num_preempted.push_back(0);
      if (random.between(0, 1) == 1) step();
    }
    while (!engine->is_idle()) step();
    for (const auto& [priority, order] : admitted) CHECK(std::ranges::is_sorted(order));
    num_preemptions += engine->stats().num_preemptions;
  }
  CHECK(num_preemptions > 50);
}

TEST_CASE("requests of different salts share no prefix, those of one salt do") {
  FakeEngine engine({.num_blocks = 64, .block_size = 4});
  const auto num_cached = [&](std::uint64_t salt) {
    const int id = engine->submit(prompt_of(13), {.max_tokens = 6}, {.cache_salt = salt});
    engine->run();
    CHECK(engine.generated(id) == expected_of(prompt_of(13), 6));
    return engine->request(id).num_cached;
  };
  CHECK(num_cached(1) == 0);
  CHECK(num_cached(2) == 0);
  CHECK(num_cached(1) == 12);
  CHECK(num_cached(0) == 0);
  CHECK(num_cached(2) == 12);
}

TEST_CASE("tokens that the vocabulary does not have are refused by name, wherever they stand") {
  FakeEngine engine({.num_blocks = 64, .block_size = 4});
  CHECK_THROWS_WITH_AS(engine->submit(prompt_of(3), {.logit_bias = {{vocab, 1.f}}}),
                       "logit-bias token: 0 to 49 expected, 50 found", BadInput);
  CHECK_THROWS_WITH_AS(engine->submit(prompt_of(3), {.stop_ids = {4, -1}}), "stop id: 0 to 49 expected, -1 found",
                       BadInput);
  CHECK(engine->is_idle());
}

TEST_CASE("the position limit bounds min_tokens, too: a text that must go on to it does so") {
  FakeEngine engine({.num_blocks = 64, .block_size = 4}, true);
  const int id = engine->submit(prompt_of(max_positions - 5), {.max_tokens = 300, .min_tokens = 300});
  engine->run();
  CHECK(engine.generated(id).size() == 5);
  CHECK(std::ranges::count(engine.generated(id), eos) == 0);
}
