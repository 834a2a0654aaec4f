// The kernels behind decode_entry.cuh.
#include "support/decode_entry.cuh"

namespace pagedkv_test {

using namespace pagedkv;

void decode(const DecodeProblem& problem, const DeviceRule& rule, cuda::Workspace& workspace, cudaStream_t stream,
            const cuda::DecodeOptions& options) {
  cuda::decode(cuda::HeadDims<64, 128>{}, problem, rule, workspace, stream, options);
}

}  // namespace pagedkv_test
