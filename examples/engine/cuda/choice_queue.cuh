// ChoiceQueue: the way of chosen tokens back to the host, up to two steps of them at once.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <span>

#include "engine/bad_input.hpp"
#include "engine/sampler.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/staging.cuh"

namespace engine {

/// First in, first out.
class ChoiceQueue {
 public:
  explicit ChoiceQueue(std::size_t max_choices) {
    for (Buffer& buffer : buffers_)
      buffer = {.host = pagedkv::cuda::PinnedArray<Choice>(max_choices), .event = pagedkv::cuda::detail::make_event()};
  }

  /// Throws InvalidArgument where the next push() would: to be asked before a step is enqueued.
  void require_room() const {
    pagedkv::require(num_pushed_ - num_popped_ < buffers_.size(),
                     "LanguageModel::launch: steps that were not collected, at most", buffers_.size() - 1,
                     num_pushed_ - num_popped_);
  }

  /// Enqueues the copy of `count` choices behind what is on the stream.
  void push(const Choice* device, std::size_t count, cudaStream_t stream) {
    require_room();
    using pagedkv::cuda::check;
    Buffer& buffer = buffers_[num_pushed_ % buffers_.size()];
    if (count > 0)
      check(cudaMemcpyAsync(buffer.host.data(), device, count * sizeof(Choice), cudaMemcpyDeviceToHost, stream),
            "choices");
    check(cudaEventRecord(buffer.event.get(), stream), "choices");
    buffer.count = count;
    ++num_pushed_;
  }

  /// Waits for the oldest; valid until two more were pushed. Throws BadInput where logits were no numbers.
  std::span<const Choice> pop() {
    pagedkv::require(num_popped_ < num_pushed_, "LanguageModel::collect: launched steps", "at least 1", 0);
    const Buffer& buffer = buffers_[num_popped_++ % buffers_.size()];
    pagedkv::cuda::check(cudaEventSynchronize(buffer.event.get()), "collect");
    const std::span<const Choice> choices(buffer.host.data(), buffer.count);
    for (const Choice& choice : choices)
      if (std::isnan(choice.logprob)) throw BadInput("logits of the model", "finite numbers", "not a number");
    return choices;
  }

 private:
  struct Buffer {
    pagedkv::cuda::PinnedArray<Choice> host;
    pagedkv::cuda::detail::Event event;
    std::size_t count = 0;
  };

  std::array<Buffer, 2> buffers_;
  std::size_t num_pushed_ = 0, num_popped_ = 0;
};

}  // namespace engine
