// Decode attention on the GPU for other head sizes and types than decode_bench's: every one is a kernel of its own.
#include <string>

#include "pagedkv/core/dtype.hpp"
#include "support/decode_case.cuh"
#include "support/decode_main.cuh"
#include "support/lengths.hpp"

namespace {

using namespace bench;

template <int HeadDim, class Element>
void add_points(const std::string& group) {
  add_case<HeadDim, Element>({group, 32, 8, equal_lengths(1, 4096)});
  add_case<HeadDim, Element>({group, 32, 8, equal_lengths(8, 4096)});
  add_case<HeadDim, Element>({group, 32, 8, equal_lengths(32, 4096)});
  add_case<HeadDim, Element>({group, 64, 8, equal_lengths(8, 4096)});  // what vLLM's benchmark runs for each head size
  add_case<HeadDim, Element>({group, 8, 8, equal_lengths(32, 4096)});
}

void add_cases() {
  add_points<64, pagedkv::bf16>("head_dim");
  add_points<80, pagedkv::bf16>("head_dim");
  add_points<96, pagedkv::bf16>("head_dim");
  add_points<112, pagedkv::bf16>("head_dim");
  add_points<192, pagedkv::bf16>("head_dim");
  add_points<256, pagedkv::bf16>("head_dim");
  add_points<128, pagedkv::f16>("f16");
}

}  // namespace

int main(int argc, char** argv) { return bench::decode_main(argc, argv, PAGEDKV_BENCH_PEERS, add_cases); }
