// From what a user asks to a Request: everything that can be said of it without knowing the others.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/bad_input.hpp"
#include "engine/files/model_config.hpp"
#include "engine/request.hpp"
#include "engine/sampling.hpp"
#include "pagedkv/cache/block_allocator.hpp"

namespace engine {

/// What else a user may say of a request.
struct SubmitOptions {
  int priority = 0;              // lower: sooner; equals in the order of arrival
  std::uint64_t cache_salt = 0;  // prefixes are shared only among requests of one salt
};

/// The position limit shortens max_tokens. Throws BadInput, naming the field.
inline std::unique_ptr<Request> make_request(std::vector<std::int32_t> prompt, SamplingParams params,
                                             const SubmitOptions& options, const ModelConfig& config,
                                             pagedkv::BlockAllocator& blocks) {
  const auto check_tokens = [&](const char* what, std::span<const std::int32_t> tokens) {
    for (const std::int32_t token : tokens)
      if (token < 0 || token >= config.vocab)
        throw BadInput(what, "0 to " + std::to_string(config.vocab - 1), std::to_string(token));
  };
  params.validate();
  const int prompt_len = static_cast<int>(prompt.size());
  if (prompt.empty()) throw BadInput("prompt", "at least 1 token", "0");
  if (prompt_len >= config.max_positions)
    throw BadInput("prompt tokens", "fewer than the model's " + std::to_string(config.max_positions) + " positions",
                   std::to_string(prompt_len));
  check_tokens("prompt token", prompt);
  check_tokens("stop id", params.stop_ids);
  for (const auto& [token, bias] : params.logit_bias) check_tokens("logit-bias token", {&token, 1});
  params.max_tokens = std::min(params.max_tokens, config.max_positions - prompt_len);

  auto request = std::make_unique<Request>();
  request->priority = options.priority;
  request->cache_salt = options.cache_salt;
  request->prompt_len = prompt_len;
  if (!params.ignore_eos) request->end_ids = config.eos_ids;
  request->end_ids.insert(request->end_ids.end(), params.stop_ids.begin(), params.stop_ids.end());
  if (params.beam_width > 0) request->beam.emplace(params.beam_width, params.max_tokens, request->end_ids);
  request->branches.push_back({.kv = pagedkv::Sequence{blocks}, .tokens = std::move(prompt)});
  request->params = std::move(params);
  return request;
}

}  // namespace engine
