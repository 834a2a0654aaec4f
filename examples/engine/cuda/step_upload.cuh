// StepUpload: all integers of a step in one copy to the device, which spreads the block tables itself.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/cuda/ops.cuh"
#include "engine/cuda/sampler.cuh"
#include "engine/language_model.hpp"
#include "engine/philox.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/staging.cuh"
#include "pagedkv/cuda/step.cuh"
#include "pagedkv/cuda/workspace.cuh"

namespace engine {

/// How many of each thing a step's arrays have; behind the batch's own lie dead ones.
struct StepSize {
  int rows = 0, seqs = 0, logit_rows = 0, draws = 0;

  friend bool operator==(const StepSize&, const StepSize&) = default;
};

namespace ops {

/// The arrays of a step, one behind the other, at places that depend on the size alone.
struct StepArrays {
  DrawInput* draws;           // [draws]
  pagedkv::Slot* slots;       // [rows]
  std::int32_t* tokens;       // [rows]
  std::int32_t* positions;    // [rows]
  std::int32_t* logit_rows;   // [logit_rows]
  std::int32_t* kv_len;       // [seqs]
  std::int32_t* query_begin;  // [seqs + 1]
  std::int32_t* ids_begin;    // [seqs + 1]
  std::int32_t* ids;          // [ids_begin[seqs]], block ids of all sequences; behind them block copies

  StepArrays(std::byte* memory, const StepSize& size) {
    const auto take = [&memory]<class T>(T*& array, std::int64_t count) {
      array = reinterpret_cast<T*>(memory);
      memory += static_cast<std::size_t>(count) * sizeof(T);
    };
    take(draws, size.draws);
    take(slots, size.rows);
    take(tokens, size.rows);
    take(positions, size.rows);
    take(logit_rows, size.logit_rows);
    take(kv_len, size.seqs);
    take(query_begin, size.seqs + 1);
    take(ids_begin, size.seqs + 1);
    take(ids, 0);
  }
};

inline constexpr int spread_threads = 64;

/// What the arrays leave to the device: block ids to their table, and the cosine and sine of every row's angles.
///   grid  a CTA for each row and each sequence
///   table [seqs, max_blocks_per_seq]   frequencies [head_dim / 2], radians a position   turns [rows, head_dim / 2]
template <class Frequency>
__global__ void __launch_bounds__(spread_threads)
    spread_kernel(const StepArrays step, const StepSize size, const Device<std::int32_t> table,
                  const Device<const Frequency, 1> frequencies, const Device<float2> turns) {
  const auto i = static_cast<int>(blockIdx.x);
  if (i < size.seqs) {
    const int begin = step.ids_begin[i], count = step.ids_begin[i + 1] - begin;
    for (int j = static_cast<int>(threadIdx.x); j < count; j += spread_threads) table(i, j) = step.ids[begin + j];
  }
  if (i < size.rows) {
    const auto position = static_cast<float>(step.positions[i]);
    for (auto j = static_cast<std::int64_t>(threadIdx.x); j < frequencies.extents[0]; j += spread_threads) {
      float2 turn;
      sincosf(position * frequencies(j), &turn.y, &turn.x);
      turns(i, j) = turn;
    }
  }
}

}  // namespace ops

/// Addresses depend on the size of a step alone, so a captured graph sees every later upload of that size. Belongs to
/// one stream.
class StepUpload {
 public:
  using Tables = pagedkv::TablesView<pagedkv::Space::device>;

  /// `frequencies` stay where they are. A step may have as many draws as sequences or logit rows.
  StepUpload(const ModelOptions& options, ops::Device<const float, 1> frequencies)
      : max_({.rows = options.max_rows,
              .seqs = options.max_seqs,
              .logit_rows = options.max_logit_rows,
              .draws = std::max(options.max_seqs, options.max_logit_rows)}),
        max_blocks_per_seq_(options.max_blocks_per_seq),
        block_size_(options.block_size),
        frequencies_(frequencies),
        staged_(bytes(options), 2),
        table_(index(options.max_seqs) * index(options.max_blocks_per_seq)),
        turns_(index(options.max_rows) * index(frequencies.extents[0])) {}

  /// Enqueues the batch's integers, padded to `size`. Throws InvalidArgument, before that, where there are more than
  /// memory was taken for.
  void send(const Batch& batch, const StepSize& size, cudaStream_t stream) {
    check(batch, size);
    std::byte* const host = staged_.fill(stream);
    const ops::StepArrays to(host, size);
    fill(std::span(to.draws, index(size.draws)), batch.draws, ops::DrawInput{}, input_of);
    const auto same = [](auto x) { return x; };
    fill(std::span(to.slots, index(size.rows)), batch.plan.slots(), pagedkv::dead_slot, same);
    fill(std::span(to.tokens, index(size.rows)), batch.tokens, 0, same);
    fill(std::span(to.positions, index(size.rows)), batch.positions, 0, same);
    fill(std::span(to.logit_rows, index(size.logit_rows)), batch.logit_rows, 0, same);
    const int num_seqs = batch.tables.num_seqs();
    std::int32_t num_ids = 0;
    for (int s = 0; s < size.seqs; ++s) {
      to.kv_len[s] = s < num_seqs ? batch.tables.kv_len(s) : 0;
      to.query_begin[s] = batch.tables.query_begin(std::min(s, num_seqs));
      to.ids_begin[s] = num_ids;
      const int count = pagedkv::ceil_div(to.kv_len[s], block_size_);
      for (int i = 0; i < count; ++i) to.ids[num_ids + i] = batch.tables.block_ids(s, i);
      num_ids += count;
    }
    to.query_begin[size.seqs] = batch.tables.query_begin(num_seqs);
    to.ids_begin[size.seqs] = num_ids;
    const auto copies = batch.plan.copies();
    auto* const copies_end =
        std::copy(copies.begin(), copies.end(), reinterpret_cast<pagedkv::BlockCopy*>(to.ids + num_ids));
    staged_.upload(index(reinterpret_cast<std::byte*>(copies_end) - host), stream);

    const ops::StepArrays from(staged_.device(), size);
    copies_ = pagedkv::dense_view<pagedkv::Space::device>(
        reinterpret_cast<const pagedkv::BlockCopy*>(from.ids + num_ids), {std::ssize(copies)});
    const int num_ctas = std::max(size.rows, size.seqs);
    if (num_ctas == 0) return;
    pagedkv::cuda::launch(ops::spread_kernel<float>,
                          {.grid = dim3(static_cast<unsigned>(num_ctas)), .threads = ops::spread_threads},
                          pagedkv::cuda::Launch::after_previous, stream, "engine: launch", from, size, table(max_.seqs),
                          frequencies_, turn_view(size.rows));
  }

  /// For copy_blocks: what the last batch has to copy.
  pagedkv::cuda::StepView copies() const { return {.copies = copies_, .slots = {}}; }

  ops::Device<const std::int32_t, 1> tokens(const StepSize& size) const {
    return list<const std::int32_t>(arrays(size).tokens, size.rows);
  }
  ops::Device<const std::int32_t, 1> logit_rows(const StepSize& size) const {
    return list<const std::int32_t>(arrays(size).logit_rows, size.logit_rows);
  }
  ops::Device<const pagedkv::Slot, 1> slots(const StepSize& size) const {
    return list<const pagedkv::Slot>(arrays(size).slots, size.rows);
  }
  ops::Device<const ops::DrawInput, 1> draws(const StepSize& size) const {
    return list<const ops::DrawInput>(arrays(size).draws, size.draws);
  }
  /// [rows, head_dim / 2], cosine and sine.
  ops::Device<const float2> turns(const StepSize& size) const { return turn_view(size.rows); }

  /// Block tables and lengths, with the bounds that the caller states.
  Tables tables(const StepSize& size, int max_q_len, int max_kv_len) const {
    return {.block_ids = table(size.seqs),
            .kv_len = list<const std::int32_t>(arrays(size).kv_len, size.seqs),
            .query_begin = list<const std::int32_t>(arrays(size).query_begin, size.seqs + 1),
            .max_q_len = max_q_len,
            .max_kv_len = max_kv_len};
  }

 private:
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

  static std::size_t bytes(const ModelOptions& options) {
    const auto rows = index(options.max_rows), seqs = index(options.max_seqs),
               logit_rows = index(options.max_logit_rows);
    return std::max(seqs, logit_rows) * sizeof(ops::DrawInput) + rows * sizeof(pagedkv::Slot) +
           (2 * rows + logit_rows + 3 * seqs + 2 + seqs * index(options.max_blocks_per_seq)) * sizeof(std::int32_t) +
           rows * sizeof(pagedkv::BlockCopy);  // an append copies one block at most
  }

  static ops::DrawInput input_of(const Draw& draw) {
    const SamplingParams& params = *draw.params;
    return {.random = params.temperature == 0 ? 0
                                              : uniform(params.seed, static_cast<std::uint32_t>(draw.sample),
                                                        static_cast<std::uint32_t>(draw.position)),
            .logit_row = draw.logit_row,
            .temperature = params.temperature,
            .top_k = params.top_k,
            .top_p = params.top_p,
            .min_p = params.min_p};
  }

  // to = from, each made anew, and `dead` behind them.
  template <class T, class From, class F>
  static void fill(std::span<T> to, const From& from, const T& dead, F&& made) {
    std::fill(std::transform(from.begin(), from.end(), to.begin(), made), to.end(), dead);
  }

  void check(const Batch& batch, const StepSize& size) const {
    const auto at_most = [](const char* what, std::int64_t most, std::int64_t count) {
      if (count > most) pagedkv::require(false, what, most, count);
    };
    at_most("step: rows, at most", max_.rows, size.rows);
    at_most("step: sequences, at most", max_.seqs, size.seqs);
    at_most("step: logit rows, at most", max_.logit_rows, size.logit_rows);
    at_most("step: draws, at most", max_.draws, size.draws);
    at_most("step: block copies, at most", max_.rows, std::ssize(batch.plan.copies()));
    for (int s = 0; s < batch.tables.num_seqs(); ++s)
      at_most("step: keys of a sequence, at most", std::int64_t{max_blocks_per_seq_} * block_size_,
              batch.tables.kv_len(s));
  }

  ops::StepArrays arrays(const StepSize& size) const { return {staged_.device(), size}; }
  template <class T>
  static ops::Device<T, 1> list(T* data, std::int64_t count) {
    return pagedkv::dense_view<pagedkv::Space::device>(data, {count});
  }
  ops::Device<std::int32_t> table(std::int64_t num_seqs) const {
    return pagedkv::dense_view<pagedkv::Space::device>(table_.data(), {num_seqs, max_blocks_per_seq_});
  }
  ops::Device<float2> turn_view(std::int64_t num_rows) const {
    return pagedkv::dense_view<pagedkv::Space::device>(turns_.data(), {num_rows, frequencies_.extents[0]});
  }

  StepSize max_;
  int max_blocks_per_seq_, block_size_;
  ops::Device<const float, 1> frequencies_;
  pagedkv::cuda::StagedArray staged_;
  pagedkv::cuda::DeviceArray<std::int32_t> table_;                             // [max_seqs, max_blocks_per_seq]
  pagedkv::cuda::DeviceArray<float2> turns_;                                   // [max_rows, head_dim / 2]
  pagedkv::View<const pagedkv::BlockCopy, 1, pagedkv::Space::device> copies_;  // in the last upload
};

}  // namespace engine
