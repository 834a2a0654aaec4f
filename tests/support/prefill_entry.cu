// The kernels behind prefill_entry.cuh.
#include "support/prefill_entry.cuh"

namespace pagedkv_test {

using namespace pagedkv;

void prefill(const PrefillProblem& problem, const Causal& rule, const cuda::Workspace& workspace, cudaStream_t stream,
             const cuda::PrefillOptions& options) {
  cuda::prefill(cuda::HeadDims<64, 128>{}, problem, rule, workspace, stream, options);
}

void prefill(const PrefillProblem& problem, const DeviceRule& rule, const cuda::Workspace& workspace,
             cudaStream_t stream, const cuda::PrefillOptions& options) {
  cuda::prefill(cuda::HeadDims<64, 128>{}, problem, rule, workspace, stream, options);
}

std::vector<cuda::PrefillKernel> prefill_kernels() {
  using cuda::PrefillKernel;
  using Config = cuda::PrefillSm90Config<bf16, 64, 64, cuda::choose_prefill_sm90(64, 64, false)>;
  static const bool has_sm90 =
      cuda::this_device().arch == 90 &&
      cuda::detail::is_compiled(cuda::attention_prefill_sm90_kernel<Config, PrefillProblem, Causal>);
  return has_sm90 ? std::vector{PrefillKernel::sm80, PrefillKernel::sm90} : std::vector{PrefillKernel::sm80};
}

}  // namespace pagedkv_test
