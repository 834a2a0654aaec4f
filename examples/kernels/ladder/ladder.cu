// Climbs the ladder: every rung of decode attention is held against the reference, and against what memory allows.
//
//   ladder           a table for two batches: microseconds, bytes of K and V a second, and how much each rung wins
//   ladder --check   only whether each rung is right: the same text on every GPU
#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/ladder/1_naive.cuh"
#include "kernels/ladder/2_warp_per_head.cuh"
#include "kernels/ladder/3_packed_heads.cuh"
#include "kernels/ladder/4_pipelined.cuh"
#include "kernels/ladder/5_split.cuh"
#include "kernels/ladder/batch.cuh"
#include "kernels/ladder/timing.cuh"
#include "pagedkv/cuda/decode.cuh"
#include "pagedkv/cuda/launch.cuh"

namespace {

using namespace ladder;

struct Rung {
  const char* name;
  const char* idea;
  std::function<void(const Problem&, cudaStream_t)> launch;
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t num_ctas, int threads, std::size_t shared_bytes,
            cudaStream_t stream, const Arguments&... arguments) {
  cuda::launch(kernel, {dim3(static_cast<unsigned>(num_ctas)), threads, shared_bytes}, cuda::Launch::after_previous,
               stream, "ladder", arguments...);
}

/// The memory of rung 5, and how it cuts a batch: four CTAs share an SM's memory, and a split is worth merging from
/// some hundred keys on.
class Splitter {
 public:
  explicit Splitter(const Problem& problem)
      : num_units_(std::int64_t{problem.tables.num_seqs()} * problem.kv_heads()),
        plan_(make_plan(problem.tables, 1, key_tile, 256,
                        static_cast<int>(max<std::int64_t>(1, 4 * cuda::this_device().num_sms / num_units_)))),
        out_(static_cast<std::size_t>(num_ctas() * head_dim * max_group)),
        softmax_(static_cast<std::size_t>(num_ctas() * 2 * lanes)),
        arrivals_(static_cast<std::size_t>(num_units_)) {}

  std::int64_t num_ctas() const { return num_units_ * plan_.max_splits; }
  const AttentionPlan& plan() const { return plan_; }
  Scratch scratch() const {
    return {.out = dense_view<Space::device>(out_.data(), {num_ctas(), head_dim / 16, lanes, 4}),
            .softmax = dense_view<Space::device>(softmax_.data(), {num_ctas(), 2, lanes}),
            .arrivals = dense_view<Space::device>(arrivals_.data(), {num_units_})};
  }

 private:
  std::int64_t num_units_;
  AttentionPlan plan_;
  cuda::DeviceArray<float> out_;
  cuda::DeviceArray<OnlineSoftmax> softmax_;
  cuda::DeviceArray<unsigned> arrivals_;
};

std::vector<Rung> rungs_for(Batch& batch, const Splitter& splitter) {
  const Problem shape = batch.problem(0);
  const std::int64_t heads = std::int64_t{shape.tables.num_seqs()} * shape.q_heads();
  const std::int64_t groups = heads / shape.group_size();
  return {
      {"1 naive", "the formula, number by number",
       [=](const Problem& problem, cudaStream_t stream) {
         launch(naive_kernel<Problem>, heads, head_dim, 0, stream, problem);
       }},
      {"2 warp per head", "lanes share a dot product",
       [=](const Problem& problem, cudaStream_t stream) {
         launch(warp_per_head_kernel<Problem>, heads, lanes, 0, stream, problem);
       }},
      {"3 packed heads", "tensor cores, each key once",
       [=](const Problem& problem, cudaStream_t stream) {
         launch(packed_heads_kernel<Problem>, groups, lanes, sizeof(KeyValueTile), stream, problem);
       }},
      {"4 pipelined", "loads never stop",
       [=](const Problem& problem, cudaStream_t stream) {
         launch(pipelined_kernel<Problem>, groups, lanes, sizeof(Ring), stream, problem);
       }},
      {"5 split", "every sequence fills the GPU",
       [&splitter](const Problem& problem, cudaStream_t stream) {
         launch(split_kernel<Problem>, splitter.num_ctas(), lanes, sizeof(Ring), stream, problem, splitter.plan(),
                splitter.scratch());
       }},
      {"cuda::decode", "equal slices of any lengths",
       [&batch](const Problem& problem, cudaStream_t stream) {
         cuda::decode<head_dim>(problem, Causal{}, batch.workspace(), stream);
       }},
  };
}

/// Runs a rung on set 0 and compares; twice, because what a launch leaves behind must not disturb the next one.
float error_of(const Rung& rung, Batch& batch, const std::vector<float>& expected) {
  float worst = 0.f;
  for (int i = 0; i < 2; ++i) {
    rung.launch(batch.problem(0), nullptr);
    worst = std::max(worst, batch.error(expected));
  }
  return worst;
}

constexpr float allowed_error = 0.01f;  // of the largest output: bf16 weights and outputs have eight bits

/// Ragged lengths, also one and those beside a tile's edge.
int check() {
  Batch batch({200, 1, 33, 1000, 32, 97, 31}, 8, 2, 1);
  const Splitter splitter(batch.problem(0));
  const std::vector<float> expected = batch.reference();
  int num_wrong = 0;
  for (const Rung& rung : rungs_for(batch, splitter)) {
    const bool right = error_of(rung, batch, expected) < allowed_error;
    std::printf("%-16s %s\n", rung.name, right ? "agrees with the reference" : "IS WRONG");
    num_wrong += right ? 0 : 1;
  }
  return num_wrong == 0 ? 0 : 1;
}

int climb(int num_seqs, int kv_len, double read_rate) {
  constexpr int q_heads = 32, kv_heads = 8;
  const std::int64_t set_bytes = std::int64_t{num_seqs} * kv_len * kv_heads * head_dim * 4;
  Batch batch(std::vector<int>(static_cast<std::size_t>(num_seqs), kv_len), q_heads, kv_heads,
              static_cast<int>(ceil_div(rotation_bytes, set_bytes)));
  const Splitter splitter(batch.problem(0));
  const std::vector<float> expected = batch.reference();
  const double bytes = static_cast<double>(batch.kv_bytes());
  std::printf(
      "\n%d x %d keys, %d query and %d KV heads, head_dim %d, bf16: %.1f MB of K and V, cold; read alone: %.1f us\n",
      num_seqs, kv_len, q_heads, kv_heads, head_dim, bytes / 1e6, bytes / read_rate * 1e6);
  std::printf("%-16s %-30s %10s %8s %8s %8s %8s\n", "rung", "idea", "us", "GB/s", "reading", "faster", "error");
  double seconds_before = 0;
  for (const Rung& rung : rungs_for(batch, splitter)) {
    const float error = error_of(rung, batch, expected);
    const double seconds = seconds_per_call(batch.num_sets(), [&](cudaStream_t stream) {
      for (int set = 0; set < batch.num_sets(); ++set) rung.launch(batch.problem(set), stream);
    });
    std::printf("%-16s %-30s %10.1f %8.1f %7.1f%%", rung.name, rung.idea, seconds * 1e6, bytes / seconds / 1e9,
                100 * bytes / seconds / read_rate);
    if (seconds_before > 0)
      std::printf(" %7.1fx", seconds_before / seconds);
    else
      std::printf(" %8s", "");
    std::printf(" %7.2f%%%s\n", 100 * error, error < allowed_error ? "" : "  WRONG");
    std::fflush(stdout);
    if (!(error < allowed_error)) return 1;
    seconds_before = seconds;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  int num_gpus = 0;
  if (cudaGetDeviceCount(&num_gpus) != cudaSuccess || num_gpus == 0) {
    std::printf("no GPU: skipped\n");
    return 77;
  }
  if (argc > 1) return std::strcmp(argv[1], "--check") == 0 ? check() : 2;
  const double rate = read_rate();
  std::printf("this GPU reads %.0f GB/s\n", rate / 1e9);
  return climb(1, 8192, rate) + climb(16, 4096, rate) == 0 ? 0 : 1;
}
