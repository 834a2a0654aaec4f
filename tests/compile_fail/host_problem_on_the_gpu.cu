// A problem whose memory lies on the host is not handed to the GPU.
// error: no instance of overloaded function
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/decode.cuh"

#ifdef MUST_COMPILE
using Problem = pagedkv::AttentionProblem<pagedkv::Space::device, float>;
#else
using Problem = pagedkv::AttentionProblem<pagedkv::Space::host, float>;
#endif

void decode(const Problem& problem, pagedkv::cuda::Workspace& workspace, cudaStream_t stream) {
  pagedkv::cuda::decode<64>(problem, pagedkv::Causal{}, workspace, stream);
}
