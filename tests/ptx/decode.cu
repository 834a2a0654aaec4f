// What ptxas is asked about: decode for every head size in use, and under rules that need the most registers.
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cuda/decode.cuh"

namespace pagedkv {
inline namespace v0 {
namespace cuda {

using Problem = AttentionProblem<Space::device, bf16>;

using LocalSink = Chain<SlidingWindow, SinkLogit<Space::device>>;
using AllAtOnce = Chain<Chain<SlidingWindow, Alibi<Space::device>>, SoftCap>;

template void decode<64, 64>(const Problem&, const Causal&, Workspace&, cudaStream_t, const DecodeOptions&);
template void decode<80, 80>(const Problem&, const Causal&, Workspace&, cudaStream_t, const DecodeOptions&);
template void decode<96, 96>(const Problem&, const Causal&, Workspace&, cudaStream_t, const DecodeOptions&);
template void decode<112, 112>(const Problem&, const Causal&, Workspace&, cudaStream_t, const DecodeOptions&);
template void decode<128, 128>(const Problem&, const Causal&, Workspace&, cudaStream_t, const DecodeOptions&);
template void decode<192, 192>(const Problem&, const Causal&, Workspace&, cudaStream_t, const DecodeOptions&);
template void decode<256, 256>(const Problem&, const Causal&, Workspace&, cudaStream_t, const DecodeOptions&);
template void decode<192, 128>(const Problem&, const Causal&, Workspace&, cudaStream_t, const DecodeOptions&);
template void decode<128, 128>(const Problem&, const LocalSink&, Workspace&, cudaStream_t, const DecodeOptions&);
template void decode<128, 128>(const Problem&, const AllAtOnce&, Workspace&, cudaStream_t, const DecodeOptions&);
template void decode<128, 128>(const Problem&, const TreeMask<Space::device>&, Workspace&, cudaStream_t,
                               const DecodeOptions&);

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
