// A generated problem on the GPU: copies of its arrays, results back into it, and the comparison with the reference.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <future>
#include <map>
#include <string>
#include <vector>

#include "pagedkv/attention/problem.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "support/problem_generator.hpp"
#include "support/rules.hpp"
#include "support/tolerance.hpp"
#include "support/watchdog.hpp"

namespace pagedkv_test {

/// Overwrites an array of the same size.
template <class T>
void copy_to_device(const pagedkv::cuda::DeviceArray<T>& copy, const std::vector<T>& elements) {
  pagedkv::cuda::check(cudaMemcpy(copy.data(), elements.data(), copy.size_bytes(), cudaMemcpyHostToDevice),
                       "copy_to_device");
}

/// A copy of `elements` in device memory.
template <class T>
pagedkv::cuda::DeviceArray<T> to_device(const std::vector<T>& elements) {
  pagedkv::cuda::DeviceArray<T> copy(elements.size());
  copy_to_device(copy, elements);
  return copy;
}

/// Waits for everything enqueued, but not for ever, then reads `copy` back.
template <class T>
void to_host(std::vector<T>& elements, const pagedkv::cuda::DeviceArray<T>& copy) {
  {
    const Watchdog watchdog("a kernel");
    pagedkv::cuda::check(cudaDeviceSynchronize(), "to_host");
  }
  elements.resize(copy.size());
  pagedkv::cuda::check(cudaMemcpy(elements.data(), copy.data(), copy.size_bytes(), cudaMemcpyDeviceToHost), "to_host");
}

template <class Q, class KV, class O>
class DeviceProblem {
 public:
  using Problem = pagedkv::AttentionProblem<pagedkv::Space::device, Q, KV, O>;

  explicit DeviceProblem(GeneratedProblem<Q, KV, O>& generated)
      : generated_(generated),
        q_(to_device(generated.q)),
        pool_(to_device(generated.pool)),
        block_ids_(to_device(generated.block_ids)),
        kv_len_(to_device(generated.kv_len)),
        query_begin_(to_device(generated.query_begin)),
        out_(to_device(generated.out)),
        lse_(to_device(generated.lse)),
        slopes_(to_device(generated.slopes)),
        sinks_(to_device(generated.sinks)),
        tree_(to_device(generated.tree)) {}

  Problem problem() const {
    return generated_.template over<pagedkv::Space::device>(
        {q_.data(), pool_.data(), block_ids_.data(), kv_len_.data(), query_begin_.data(), out_.data(), lse_.data()});
  }

  Rules<pagedkv::Space::device> rules() const {
    return {
        .slopes = slopes_.data(), .sinks = sinks_.data(), .tree = {.tables = problem().tables, .sees = tree_.data()}};
  }

  /// The problem's K and V, to be written.
  pagedkv::KvView<KV, pagedkv::Space::device> pool() const {
    return generated_.template kv_view<pagedkv::Space::device>(pool_.data());
  }

  /// Outputs back to canaries, on both sides; addresses stay.
  void clear_outputs() {
    generated_.clear_outputs();
    copy_to_device(out_, generated_.out);
    copy_to_device(lse_, generated_.lse);
  }

  /// Reads out and lse back into the generated problem.
  void fetch_outputs() {
    to_host(generated_.out, out_);
    to_host(generated_.lse, lse_);
  }

 private:
  GeneratedProblem<Q, KV, O>& generated_;
  pagedkv::cuda::DeviceArray<Q> q_;
  pagedkv::cuda::DeviceArray<KV> pool_;
  pagedkv::cuda::DeviceArray<std::int32_t> block_ids_, kv_len_, query_begin_;
  pagedkv::cuda::DeviceArray<O> out_;
  pagedkv::cuda::DeviceArray<float> lse_, slopes_, sinks_;
  pagedkv::cuda::DeviceArray<std::uint64_t> tree_;
};

/// Runs attend(problem, rule) for the rules that `visit(rules, f)` calls f(name, rule) with; the first difference from
/// the reference, which is computed for several rules at a time, or "".
template <class Q, class KV, class O, class Visit, class Attend>
std::string mismatch_of_rules(GeneratedProblem<Q, KV, O>& generated, Tolerance tolerance, Visit&& visit,
                              Attend&& attend) {
  std::map<std::string, std::future<Expected>> expected;
  visit(rules_of(generated), [&](const char* name, auto rule) {
    expected[name] = std::async(std::launch::async, [&generated, rule] { return expected_of(generated, rule); });
  });
  for (const auto& [name, result] : expected) result.wait();  // before anything writes to `generated`

  DeviceProblem device(generated);
  std::string result;
  visit(device.rules(), [&](const char* name, auto rule) {
    device.clear_outputs();
    attend(device.problem(), rule);
    device.fetch_outputs();
    const std::string difference = mismatch(generated, expected.at(name).get(), tolerance);
    if (!difference.empty() && result.empty()) result = std::string(name) + ": " + difference;
  });
  return result;
}

/// The same for every rule and every model's chain.
template <class Q, class KV, class O, class Attend>
std::string mismatch_of_any_rule(GeneratedProblem<Q, KV, O>& generated, Tolerance tolerance, Attend&& attend) {
  const auto all = [](const auto& rules, auto&& f) {
    rules.for_each(f);
    rules.for_each_model_chain(f);
  };
  return mismatch_of_rules(generated, tolerance, all, attend);
}

/// The same for one rule without pointers.
template <class Q, class KV, class O, class V, class Attend>
std::string mismatch_of_rule(GeneratedProblem<Q, KV, O>& generated, const V& rule, Tolerance tolerance,
                             Attend&& attend) {
  const Expected expected = expected_of(generated, rule);
  DeviceProblem device(generated);
  attend(device.problem(), rule);
  device.fetch_outputs();
  return mismatch(generated, expected, tolerance);
}

}  // namespace pagedkv_test
