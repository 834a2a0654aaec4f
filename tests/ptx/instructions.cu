// The instructions that PTX must hold. "expect KERNEL INSTRUCTION": every kernel whose mangled name matches KERNEL
// has it; "expect-90": from compute capability 9.0 on; "never": none has it.
//
// expect paged_decode_sm80 mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
// expect paged_decode_sm80 cp.async.cg.shared.global
// expect paged_decode_sm80 ldmatrix.sync.aligned.m8n8.x4.shared.b16
// expect paged_decode_sm80 ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16
// expect paged_decode_sm80 movmatrix.sync.aligned.m8n8.trans.b16
// expect-90 paged_decode_sm80 griddepcontrol.wait
// expect-90 paged_decode_sm80 griddepcontrol.launch_dependents
// never paged_decode_sm80 .f64
// never paged_decode_sm80 .local
// expect kv_store_kernel.*Li8E ld.global.v4
// expect kv_store_kernel.*Li8E st.global.v4
// expect block_copy_kernel.*PieceILm16E ld.global.v4
// expect block_copy_kernel.*PieceILm16E st.global.v4
// expect block_swap_kernel.*PieceILm16E ld.global.v4
// expect block_swap_kernel.*PieceILm16E st.global.v4
// expect-90 kv_store_kernel griddepcontrol.wait
// expect-90 block_copy_kernel griddepcontrol.wait
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/decode.cuh"
#include "pagedkv/cuda/step.cuh"
#include "pagedkv/cuda/swap.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

using Problem = AttentionProblem<Space::device, bf16>;

template void decode<128, 128>(const Problem&, const Causal&, Workspace&, cudaStream_t, const DecodeOptions&);
template void copy_blocks(const StepView&, const KvLayers<bf16, Space::device>&, cudaStream_t, Launch);
template void store_kv(const StepView&, const KvView<bf16, Space::device>&, const View<const bf16, 3, Space::device>&,
                       const View<const bf16, 3, Space::device>&, cudaStream_t, Launch);
template void swap_blocks(std::span<const BlockPair>, const KvLayers<bf16, Space::device>&,
                          const KvLayers<bf16, Space::host>&, cudaStream_t);

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
