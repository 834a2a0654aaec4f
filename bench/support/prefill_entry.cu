// The kernels behind prefill_entry.cuh, for the head_dim PAGEDKV_BENCH_HEAD_DIM.
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/prefill.cuh"
#include "support/prefill_entry.cuh"

namespace bench {

template <int HeadDim>
void enqueue_prefill(const PrefillProblem& problem, bool causal, PrefillPath path, pagedkv::cuda::Workspace& workspace,
                     cudaStream_t stream) {
  const pagedkv::cuda::PrefillOptions options = {
      .kernel = path == PrefillPath::sm80 ? pagedkv::cuda::PrefillKernel::sm80 : pagedkv::cuda::PrefillKernel::best};
  if (causal)
    pagedkv::cuda::prefill<HeadDim>(problem, pagedkv::Causal{}, workspace, stream, options);
  else
    pagedkv::cuda::prefill<HeadDim>(problem, pagedkv::Full{}, workspace, stream, options);
}

template void enqueue_prefill<PAGEDKV_BENCH_HEAD_DIM>(const PrefillProblem&, bool, PrefillPath,
                                                      pagedkv::cuda::Workspace&, cudaStream_t);

}  // namespace bench
