// Results of a device problem as bits, and other fills of a batch, for replaying a captured graph.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/workspace.cuh"
#include "support/device_problem.cuh"
#include "support/problem_generator.hpp"
#include "support/random.hpp"

namespace pagedkv_test {

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

/// out and lse with their margins; equal where all bits are.
template <class O>
struct Outputs {
  std::vector<O> out;
  std::vector<float> lse;

  friend bool operator==(const Outputs& a, const Outputs& b) {
    return same_bits(a.out, b.out) && same_bits(a.lse, b.lse);
  }
};

/// The bits that `attend(problem)` leaves behind, starting from canaries.
template <class Q, class KV, class O, class Attend>
Outputs<O> bits_of(GeneratedProblem<Q, KV, O>& generated, DeviceProblem<Q, KV, O>& device, Attend&& attend) {
  device.clear_outputs();
  attend(device.problem());
  device.fetch_outputs();
  return {generated.out, generated.lse};
}

/// `problem` for its sequence `s` alone; rows of q and out stay where they are.
template <class Problem>
Problem only_sequence(Problem problem, const ProblemShape& shape, int s) {
  auto& tables = problem.tables;
  tables.block_ids.data = tables.block_ids.at(s, 0);
  tables.kv_len.data += s;
  tables.query_begin.data += s;
  tables.block_ids.extents[0] = tables.kv_len.extents[0] = 1;
  tables.query_begin.extents[0] = 2;
  tables.max_q_len = shape.q_len[static_cast<std::size_t>(s)];
  tables.max_kv_len = shape.kv_len[static_cast<std::size_t>(s)];
  return problem;
}

/// Tables of the first `num_seqs` sequences of a problem, with its lengths or with shorter ones, drawn anew; the bounds
/// stay the problem's.
struct Fill {
  std::vector<std::int32_t> kv_len, query_begin;
  pagedkv::TablesView<pagedkv::Space::host> view;

  template <class Generated>
  Fill(const Generated& generated, int num_seqs) : query_begin{0} {
    for (std::size_t s = 0; s < static_cast<std::size_t>(num_seqs); ++s)
      append(generated.shape.kv_len[s], generated.shape.q_len[s]);
    look_at(generated, num_seqs);
  }

  template <class Generated>
  Fill(const Generated& generated, int num_seqs, std::uint64_t seed) : query_begin{0} {
    Random random(seed);
    const ProblemShape& shape = generated.shape;
    for (std::size_t s = 0; s < static_cast<std::size_t>(num_seqs); ++s) {
      const int keys = random.one_in(4) ? 0 : random.between(0, shape.kv_len[s]);
      append(keys, random.between(0, shape.q_len[s]));
    }
    look_at(generated, num_seqs);
  }
  Fill(const Fill&) = delete;
  Fill& operator=(const Fill&) = delete;

 private:
  void append(int keys, int queries) {
    kv_len.push_back(keys);
    query_begin.push_back(query_begin.back() + queries);
  }

  template <class Generated>
  void look_at(const Generated& generated, int num_seqs) {
    const ProblemShape& shape = generated.shape;
    view = {.block_ids = pagedkv::dense_view(generated.block_ids.data(), {num_seqs, generated.max_blocks_per_seq}),
            .kv_len = pagedkv::dense_view(kv_len.data(), {num_seqs}),
            .query_begin = pagedkv::dense_view(query_begin.data(), {num_seqs + 1}),
            .max_q_len = *std::max_element(shape.q_len.begin(), shape.q_len.end()),
            .max_kv_len = *std::max_element(shape.kv_len.begin(), shape.kv_len.end())};
  }
};

}  // namespace pagedkv_test
