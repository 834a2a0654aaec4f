// Decode attention on the GPU, bf16 and head_dim 128: time of a call in a CUDA graph of calls on cold K and V, against
// the time of only reading them and against other projects' best kernels. Choose groups with --benchmark_filter=^grid/.
#include <initializer_list>
#include <string>
#include <vector>

#include "pagedkv/core/dtype.hpp"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/storage/kv_layout.hpp"
#include "support/decode_case.cuh"
#include "support/decode_main.cuh"
#include "support/lengths.hpp"

namespace {

using namespace bench;
using pagedkv::KvOrder;
using pagedkv::cuda::Launch;

void add(const DecodeCase& c) { add_case<128, pagedkv::bf16>(c); }

/// The batches on which the peers were measured, for one pair of head counts: all whose K and V fit in 32 GiB.
void add_grid(int q_heads, int kv_heads) {
  for (const int num_seqs : {1, 8, 32, 128})
    for (const int kv_len : {1024, 4096, 16384, 65536})
      if (const DecodeCase c{"grid", q_heads, kv_heads, equal_lengths(num_seqs, kv_len)};
          c.kv_bytes(128) <= std::int64_t{32} << 30)
        add(c);
}

// Seconds are of an H200.
void add_cases() {
  add_grid(32, 8);  // all four: 15 s
  add_grid(64, 8);
  add_grid(32, 32);
  add_grid(8, 1);

  for (const int q_heads : {32, 64})  // 3 s
    for (const Lengths& lengths : mixed_lengths()) add({"mixed", q_heads, 8, lengths});

  const std::vector<Lengths> few_points = {equal_lengths(1, 4096), equal_lengths(8, 4096), equal_lengths(32, 4096),
                                           equal_lengths(128, 1024)};
  for (const Lengths& lengths : few_points) {  // each of these groups: 3 s
    for (const int block_size : {1, 4, 8, 16, 32, 64, 128})
      add({.group = "block_size", .q_heads = 32, .kv_heads = 8, .lengths = lengths, .block_size = block_size});
    for (const int block_size : {1, 16, 64})
      for (const KvOrder order : {KvOrder::hnd, KvOrder::nhd})
        add({.group = "order",
             .q_heads = 32,
             .kv_heads = 8,
             .lengths = lengths,
             .block_size = block_size,
             .order = order});
    for (const int group_size : {1, 2, 3, 4, 5, 7, 8, 16}) add({"group_size", 8 * group_size, 8, lengths});
    for (const int q_len : {1, 2, 4, 8}) add({"q_len", 32, 8, lengths, q_len});
  }

  std::vector<Lengths> points = few_points;  // 3 s each
  points.insert(points.end(), {equal_lengths(1, 1024), equal_lengths(1, 16384), equal_lengths(8, 1024),
                               equal_lengths(32, 1024), one_long(32, 1024, 5, 65536), log_normal_lengths(32, 4)});
  for (const Lengths& lengths : points) {
    for (const Launch launch : {Launch::overlap_previous, Launch::after_previous})
      add({.group = "launch", .q_heads = 32, .kv_heads = 8, .lengths = lengths, .launch = launch});
    for (const bool invariant : {false, true})
      add({.group = "invariant", .q_heads = 32, .kv_heads = 8, .lengths = lengths, .batch_invariant = invariant});
  }

  for (const Lengths& lengths : {equal_lengths(1, 1024), equal_lengths(1, 4096), equal_lengths(8, 1024)})  // 1 s
    add({.group = "hot", .q_heads = 32, .kv_heads = 8, .lengths = lengths, .hot = true});

  for (const Lengths& lengths :  // 5 s
       {equal_lengths(256, 1024), equal_lengths(1024, 1024), equal_lengths(4096, 256), equal_lengths(16384, 64)})
    add({"batch", 32, 8, lengths});

  // What FlashInfer's bench_batch_decode.py runs (NHD; 8 s) and vLLM's benchmark_paged_attention.py by default.
  for (const int num_seqs : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512})
    for (const int kv_len : {512, 1024, 2048, 4096, 8192, 16384})
      add({.group = "flashinfer",
           .q_heads = 32,
           .kv_heads = 4,
           .lengths = equal_lengths(num_seqs, kv_len),
           .order = KvOrder::nhd});
  for (const int block_size : {16, 32})
    add({.group = "vllm", .q_heads = 64, .kv_heads = 8, .lengths = equal_lengths(8, 4096), .block_size = block_size});

  // Long enough to watch clocks and power beside: nvidia-smi --query-gpu=clocks.sm,power.draw --format=csv -lms 100.
  for (const Lengths& lengths : {equal_lengths(1, 4096), equal_lengths(32, 4096), equal_lengths(32, 16384)})  // 8 s
    add({.group = "sustained", .q_heads = 32, .kv_heads = 8, .lengths = lengths, .seconds = 2.});
}

}  // namespace

int main(int argc, char** argv) { return bench::decode_main(argc, argv, PAGEDKV_BENCH_PEERS, add_cases); }
