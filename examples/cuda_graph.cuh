// Stream and Graph: what an application wraps around CUDA's own, so that a step is captured once and replayed.
#pragma once

#include <cuda_runtime_api.h>

#include "pagedkv/cuda/error.cuh"

/// A stream that does not wait for the default stream, which a capture asks for.
class Stream {
 public:
  Stream() { pagedkv::cuda::check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "stream"); }
  ~Stream() { static_cast<void>(cudaStreamDestroy(handle_)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  operator cudaStream_t() const { return handle_; }
  void wait() const { pagedkv::cuda::check(cudaStreamSynchronize(handle_), "stream"); }

 private:
  cudaStream_t handle_ = nullptr;
};

/// What `enqueue()` puts on the stream, recorded instead of run.
class Graph {
 public:
  template <class Enqueue>
  Graph(cudaStream_t stream, Enqueue&& enqueue) {
    using pagedkv::cuda::check;
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    enqueue();
    check(cudaStreamEndCapture(stream, &graph), "capture");
    check(cudaGraphInstantiate(&executable_, graph, 0), "instantiate");
    check(cudaGraphDestroy(graph), "graph");
  }
  ~Graph() { static_cast<void>(cudaGraphExecDestroy(executable_)); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void replay(cudaStream_t stream) const { pagedkv::cuda::check(cudaGraphLaunch(executable_, stream), "replay"); }

 private:
  cudaGraphExec_t executable_ = nullptr;
};
