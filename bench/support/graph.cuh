// Calls captured in one CUDA graph and replayed: how the GPU benchmarks time what takes microseconds.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

#include "pagedkv/cuda/error.cuh"

namespace bench {

using pagedkv::cuda::check;

/// `num_calls` calls back to back on one stream. Launch costs of the host drop out; those of the GPU stay in.
class Graph {
 public:
  /// Captures call(i, stream) for i = 0 .. num_calls - 1, after one call outside, which loads the kernels.
  template <class Call>
  Graph(int num_calls, Call&& call) : num_calls_(num_calls) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "graph: stream");
    check(cudaEventCreate(&start_), "graph: event");
    check(cudaEventCreate(&stop_), "graph: event");
    call(0, stream_);
    check(cudaStreamSynchronize(stream_), "graph: first call");
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "graph: capture");
    for (int i = 0; i < num_calls; ++i) call(i, stream_);
    check(cudaStreamEndCapture(stream_, &graph), "graph: capture");
    check(cudaGraphInstantiate(&graph_, graph, 0), "graph: instantiate");
    check(cudaGraphDestroy(graph), "graph: destroy");
    check(cudaGraphUpload(graph_, stream_), "graph: upload");
  }
  ~Graph() {
    static_cast<void>(cudaGraphExecDestroy(graph_));
    static_cast<void>(cudaEventDestroy(start_));
    static_cast<void>(cudaEventDestroy(stop_));
    static_cast<void>(cudaStreamDestroy(stream_));
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Replays once and waits: seconds a call.
  double seconds_per_call() {
    float milliseconds = 0;
    check(cudaEventRecord(start_, stream_), "graph: replay");
    check(cudaGraphLaunch(graph_, stream_), "graph: replay");
    check(cudaEventRecord(stop_, stream_), "graph: replay");
    check(cudaEventSynchronize(stop_), "graph: replay");
    check(cudaEventElapsedTime(&milliseconds, start_, stop_), "graph: replay");
    return milliseconds / 1e3 / num_calls_;
  }

  /// The same `replays` times, after `warm_up` replays that are not counted.
  std::vector<double> samples(int replays, int warm_up = 2) {
    for (int i = 0; i < warm_up; ++i) seconds_per_call();
    std::vector<double> seconds;
    for (int i = 0; i < replays; ++i) seconds.push_back(seconds_per_call());
    return seconds;
  }

 private:
  int num_calls_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace bench
