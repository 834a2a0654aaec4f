// Choices on the GPU against Sampler's on the host: the same logits, parameters and random numbers.
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/cuda/choice_queue.cuh"
#include "engine/cuda/sampler.cuh"
#include "engine/philox.hpp"
#include "engine/sampler.hpp"
#include "engine/sampling.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/memory.cuh"

using namespace engine;
using Space = pagedkv::Space;
using Logits = std::vector<float>;  // rows, one behind the other

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

template <class T>
pagedkv::cuda::DeviceArray<T> to_device(std::span<const T> values) {
  pagedkv::cuda::DeviceArray<T> array(values.size());
  pagedkv::cuda::check(cudaMemcpy(array.data(), values.data(), array.size_bytes(), cudaMemcpyHostToDevice), "to");
  return array;
}

// As the back end does: rows at multiples of 16 bytes, whatever the vocabulary.
std::vector<Choice> choose(const Logits& logits, int vocab, const std::vector<ops::DrawInput>& inputs,
                           const std::vector<Choice>& old = {}) {
  const std::int64_t num_rows = std::ssize(logits) / vocab, stride = pagedkv::round_up(vocab, 4);
  std::vector<float> padded(static_cast<std::size_t>(num_rows * stride), inf);  // padding is no logit
  for (std::int64_t row = 0; row < num_rows; ++row)
    std::copy_n(logits.begin() + row * vocab, vocab, padded.begin() + row * stride);
  const auto rows = to_device<float>(padded);
  const auto draws = to_device<ops::DrawInput>(inputs);
  std::vector<Choice> choices(old);
  choices.resize(inputs.size());
  const auto chosen = to_device<Choice>(choices);
  const auto kernel = ops::choose_kernel<float>;
  pagedkv::cuda::check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(ops::sampling::SharedMemory)),
      "shared memory");
  const auto num_draws = static_cast<std::int64_t>(inputs.size());
  auto view = pagedkv::dense_view<Space::device>(static_cast<const float*>(rows.data()), {num_rows, stride});
  view.extents[1] = vocab;
  pagedkv::cuda::launch(
      kernel, {dim3(static_cast<unsigned>(num_draws)), ops::sampling::threads, sizeof(ops::sampling::SharedMemory)},
      pagedkv::cuda::Launch::after_previous, nullptr, "choose", view,
      pagedkv::dense_view<Space::device>(static_cast<const ops::DrawInput*>(draws.data()), {num_draws}),
      pagedkv::dense_view<Space::device>(chosen.data(), {num_draws}));
  pagedkv::cuda::check(cudaMemcpy(choices.data(), chosen.data(), chosen.size_bytes(), cudaMemcpyDeviceToHost), "from");
  return choices;
}

ops::DrawInput input_of(int row, const SamplingParams& params, double random) {
  return {.random = random,
          .logit_row = row,
          .temperature = params.temperature,
          .top_k = params.top_k,
          .top_p = params.top_p,
          .min_p = params.min_p};
}

// One draw a row, each row at its own position. Returns how many tokens differ.
int num_disagreements(const Logits& logits, int vocab, const SamplingParams& params) {
  const int num_rows = static_cast<int>(logits.size()) / vocab;
  std::vector<ops::DrawInput> inputs;
  for (int row = 0; row < num_rows; ++row)
    inputs.push_back(input_of(row, params, uniform(params.seed, 3, static_cast<std::uint32_t>(row))));
  const std::vector<Choice> got = choose(logits, vocab, inputs);
  Sampler sampler;
  int count = 0;
  double largest = 0;
  for (int row = 0; row < num_rows; ++row) {
    const std::span<const float> of_row(logits.data() + static_cast<std::ptrdiff_t>(row) * vocab,
                                        static_cast<std::size_t>(vocab));
    const Choice expected = sampler.choose(of_row, params, 3, row);
    const Choice& chosen = got[static_cast<std::size_t>(row)];
    count += chosen.token != expected.token;
    const double rest = expected.logprob - of_row[static_cast<std::size_t>(expected.token)];
    largest = std::max(largest, std::abs(chosen.logprob - of_row[static_cast<std::size_t>(chosen.token)] - rest));
  }
  CHECK(largest < 1e-6 + 2e-6 * std::log(vocab));
  return count;
}

Logits random_logits(int num_rows, int vocab, float deviation, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(1.f, deviation);
  Logits logits(static_cast<std::size_t>(num_rows) * static_cast<std::size_t>(vocab));
  for (float& x : logits) x = normal(generator);
  return logits;
}

}  // namespace

TEST_CASE("greedy choice is the first of the highest logits, for any vocabulary") {
  for (const int vocab : {1, 3, 32, 1001, 4096, 151936}) {
    CAPTURE(vocab);
    const SamplingParams greedy;
    CHECK(num_disagreements(random_logits(9, vocab, 3.f, 1), vocab, greedy) == 0);
    Logits ties = random_logits(9, vocab, 3.f, 2);
    for (float& x : ties) x = std::round(x);  // the highest comes many times
    CHECK(num_disagreements(ties, vocab, greedy) == 0);
    CHECK(num_disagreements(Logits(static_cast<std::size_t>(vocab), -2.5f), vocab, greedy) == 0);
  }
}

TEST_CASE("draws are the host's, whatever the rules, but for a rounding in thousands") {
  const std::vector<SamplingParams> table = {
      {.temperature = 1},
      {.temperature = 0.6f, .seed = 1},
      {.temperature = 1.7f, .seed = 2},
      {.temperature = 1, .top_k = 1, .seed = 3},
      {.temperature = 0.6f, .top_k = 20, .top_p = 0.95f, .seed = 4},
      {.temperature = 1, .top_k = 2000, .seed = 5},
      {.temperature = 1, .top_k = 1 << 30, .seed = 6},
      {.temperature = 1, .top_p = 0.1f, .seed = 7},
      {.temperature = 1, .top_p = 0.9f, .seed = 8},
      {.temperature = 0.8f, .top_p = 0.999f, .seed = 9},
      {.temperature = 1, .top_p = 1e-9f, .seed = 10},
      {.temperature = 1, .min_p = 0.05f, .seed = 11},
      {.temperature = 1, .min_p = 1, .seed = 12},
      {.temperature = 1.2f, .top_k = 50, .top_p = 0.9f, .min_p = 0.02f, .seed = 13},
      {.temperature = 1e-6f, .seed = 14},
      {.temperature = 1e-42f, .seed = 15},
      {.temperature = 1e6f, .seed = 16},
      {.temperature = 1e6f, .top_k = 100, .seed = 17},
  };
  int num_rows = 0, disagreements = 0;
  for (const SamplingParams& params : table) {
    for (const int vocab : {5, 1001, 50000}) {
      for (const float deviation : {0.01f, 1.f, 4.f}) {
        CAPTURE(params.seed);
        CAPTURE(vocab);
        CAPTURE(deviation);
        const int rows = vocab < 50000 ? 50 : 4;
        const int count = num_disagreements(random_logits(rows, vocab, deviation, 5), vocab, params);
        CHECK(count <= 1);
        num_rows += rows;
        disagreements += count;
      }
    }
  }
  MESSAGE(disagreements << " of " << num_rows << " draws differ");
  CHECK(disagreements <= num_rows / 1000);
}

TEST_CASE("tokens that are equal, all or nearly all, go in order of their ids") {
  for (const int vocab : {7, 1500, 30000}) {
    CAPTURE(vocab);
    Logits logits;
    for (int row = 0; row < 12; ++row) logits.insert(logits.end(), static_cast<std::size_t>(vocab), 0.25f * row);
    CHECK(num_disagreements(logits, vocab, {.temperature = 1}) == 0);
    CHECK(num_disagreements(logits, vocab, {.temperature = 1, .top_k = 5, .seed = 1}) == 0);
    CHECK(num_disagreements(logits, vocab, {.temperature = 1, .top_k = 1200, .seed = 2}) == 0);
    CHECK(num_disagreements(logits, vocab, {.temperature = 0.7f, .top_p = 0.5f, .seed = 3}) == 0);
    for (std::size_t i = 0; i < logits.size(); i += 3) logits[i] = -inf;  // never chosen
    for (std::size_t i = 1; i < logits.size(); i += 7) logits[i] = -1e30f;
    CHECK(num_disagreements(logits, vocab, {.temperature = 1, .seed = 4}) == 0);
    CHECK(num_disagreements(logits, vocab, {.temperature = 1e6f, .top_k = 1200, .seed = 5}) == 0);
    CHECK(num_disagreements(logits, vocab, {.seed = 6}) == 0);
  }
}

TEST_CASE("a bin of many tokens is strewn over finer ones") {
  constexpr int vocab = 40000;
  Logits logits = random_logits(6, vocab, 1e-5f, 8);
  for (std::size_t row = 0; row < 6; ++row) logits[row * vocab] = -40;  // stretches the bins over all the range
  for (const SamplingParams& params : {SamplingParams{.temperature = 1.5f},
                                       {.temperature = 1.5f, .top_k = 9000},
                                       {.temperature = 1.5f, .top_p = 0.3f}})
    CHECK(num_disagreements(logits, vocab, params) <= 1);
}

TEST_CASE("tokens come as often as they are likely") {
  const Logits logits = {0.5f, -1.f, 2.f, 0.f, 1.25f, -inf, 0.5f, -3.f};
  const SamplingParams params{.temperature = 0.9f, .top_k = 6, .top_p = 0.97f};
  constexpr int num_draws = 40000;
  std::vector<ops::DrawInput> inputs;
  for (int i = 0; i < num_draws; ++i) inputs.push_back(input_of(0, params, uniform(11, 0, static_cast<unsigned>(i))));
  std::vector<int> counts(logits.size());
  for (const Choice& choice : choose(logits, 8, inputs)) ++counts[static_cast<std::size_t>(choice.token)];
  // Of the six likeliest, 2, 4, 0 and 6 hold 0.926 and with 3, which fills the nucleus, 0.982.
  std::vector<double> weights(logits.size());
  for (const std::size_t i : {2u, 4u, 0u, 6u, 3u}) weights[i] = std::exp(logits[i] / params.temperature);
  double total = 0, chi_square = 0;
  for (const double weight : weights) total += weight;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double expected = num_draws * weights[i] / total;
    if (expected == 0)
      CHECK(counts[i] == 0);
    else
      chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  CHECK(chi_square < 18.5);  // one in a thousand, with 4 degrees of freedom; these draws are always the same
}

TEST_CASE("logits that are no numbers are named when they are collected, and others of the step are as they were") {
  const Logits good = random_logits(1, 100, 1.f, 3);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), inf, -inf}) {
    CAPTURE(bad);
    Logits logits = good;
    logits.insert(logits.end(), good.begin(), good.end());
    if (bad == -inf)
      std::fill(logits.begin() + 100, logits.end(), bad);
    else
      logits[177] = bad;
    for (const float temperature : {0.f, 1.f}) {
      const auto choices =
          choose(logits, 100,
                 {input_of(0, {.temperature = temperature}, 0.5), input_of(1, {.temperature = temperature}, 0.5)});
      CHECK(choices[0].token == choose(good, 100, {input_of(0, {.temperature = temperature}, 0.5)})[0].token);
      CHECK(std::isnan(choices[1].logprob));
      CHECK(choices[1].token == 0);

      ChoiceQueue queue(2);
      const auto on_device = to_device<Choice>(choices);
      queue.push(on_device.data(), 1, nullptr);
      queue.push(on_device.data(), 2, nullptr);
      CHECK_THROWS_AS(queue.require_room(), pagedkv::InvalidArgument);
      CHECK(queue.pop().size() == 1);
      CHECK_THROWS_WITH_AS(queue.pop(), doctest::Contains("logits of the model: finite numbers expected"), BadInput);
      CHECK_THROWS_AS(queue.pop(), pagedkv::InvalidArgument);
      queue.push(on_device.data(), 1, nullptr);  // it goes on behind the bad step
      CHECK(queue.pop()[0].token == choices[0].token);
    }
  }
}

TEST_CASE("a draw of no row leaves the choice that was there") {
  const std::vector<Choice> old(2, {.token = 77, .logprob = -1});
  const auto choices = choose({0, 3, 1}, 3, {{}, input_of(0, {}, 0)}, old);
  CHECK(choices[0].token == 77);
  CHECK(choices[1].token == 1);
}
