// Workspace: tables arrive, whole or by their changes, at addresses that never change; rows behind the fill are empty,
// too much is refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "cuda_graph.cuh"
#include "pagedkv/cache/batch_tables.hpp"
#include "pagedkv/cache/sequence.hpp"
#include "pagedkv/cache/step_plan.hpp"
#include "pagedkv/cuda/device.cuh"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/launch.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/workspace.cuh"
#include "support/random.hpp"

namespace {

using namespace pagedkv;

struct HostTables {
  std::vector<std::int32_t> block_ids, kv_len, query_begin;

  TablesView<Space::host> view(std::int64_t width) const {
    const auto num_seqs = static_cast<std::int64_t>(kv_len.size());
    return {.block_ids = dense_view(block_ids.data(), {num_seqs, width}),
            .kv_len = dense_view(kv_len.data(), {num_seqs}),
            .query_begin = dense_view(query_begin.data(), {num_seqs + 1}),
            .max_q_len = 2,
            .max_kv_len = 9};
  }
};

std::vector<std::int32_t> read(const std::int32_t* data, std::int64_t size) {
  std::vector<std::int32_t> copy(static_cast<std::size_t>(size));
  cuda::check(cudaDeviceSynchronize(), "read");
  cuda::check(cudaMemcpy(copy.data(), data, copy.size() * sizeof(std::int32_t), cudaMemcpyDeviceToHost), "read");
  return copy;
}

/// The stream is busy for a while: what is enqueued behind waits, and the host runs ahead.
void keep_busy(cudaStream_t stream) {
  const auto sleep = [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(50)); };
  cuda::check(cudaLaunchHostFunc(stream, sleep, nullptr), "sleep");
}

constexpr int rows = 8, columns = 512, block_size = 4;
constexpr BatchTablesOptions batch_options{.max_seqs = rows, .max_blocks_per_seq = columns, .block_size = block_size};
constexpr cuda::WorkspaceOptions small{.max_seqs = 9, .max_blocks_per_seq = columns + 3, .max_tokens = 1};
constexpr std::size_t length_bytes = (2 * 9 + 1) * sizeof(std::int32_t), change_bytes = 3 * sizeof(std::int32_t);
constexpr std::size_t row_bytes = (columns + 3) * sizeof(std::int32_t);

void grow(Sequence& sequence, int num_tokens) {
  StepPlan step;
  REQUIRE(sequence.append(num_tokens, step));
  step.commit();
}

/// A batch in which sequences come, grow, shrink, slide their windows and go.
class Crowd {
 public:
  explicit Crowd(std::uint64_t seed) : random_(seed) {}

  /// One event in some rows; now and then the whole batch is another, or changes more than its log holds.
  void advance() {
    const int event = random_.between(0, 19);
    if (event == 0) replace();
    if (event == 1) clear();
    const int num_changes = event == 2 ? 12 : random_.between(0, 3);
    for (int i = 0; i < num_changes; ++i) change(random_.between(0, rows - 1));
  }

  BatchTables tables{batch_options};

 private:
  struct Member {
    int row;
    Sequence sequence;
  };

  // By itself, which is another table to those who follow it.
  void replace() {
    tables.assign(tables.to_padded());
    for (int row = 0; row < tables.num_seqs(); ++row)
      if (member_of(row) == members_.end()) tables.remove(row);
  }

  void clear() {
    tables.clear();
    members_.clear();
  }

  std::vector<Member>::iterator member_of(int row) {
    return std::find_if(members_.begin(), members_.end(), [=](const Member& member) { return member.row == row; });
  }

  void change(int row) {
    const auto member = member_of(row);
    if (member == members_.end()) {
      if (std::ssize(members_) == rows) return;
      Sequence sequence{blocks_};
      grow(sequence, random_.between(1, 400));
      const int given = tables.add(sequence, 1);
      members_.push_back({given, std::move(sequence)});
      return;
    }
    Sequence& sequence = member->sequence;
    switch (random_.between(0, 5)) {
      case 0:
        tables.remove(row);
        members_.erase(member);
        return;
      case 1:
        sequence.truncate(random_.between(sequence.size() - 1, sequence.size()));
        break;
      case 2:
        sequence.release_before(sequence.size() / 2);
        break;
      default:
        grow(sequence, random_.between(0, std::min(20, columns * block_size - sequence.size())));
        break;
    }
    tables.update(row, sequence, random_.between(0, std::min(3, sequence.size())));
  }

  pagedkv_test::Random random_;
  BlockAllocator blocks_{{.num_blocks = rows * columns, .block_size = block_size}};
  std::vector<Member> members_;
};

/// All that a workspace holds of tables.
struct Image {
  std::vector<std::int32_t> kv_len, query_begin, block_ids;
};

Image image(const cuda::Workspace& workspace) {
  const auto all = workspace.tables(1, 1);
  return {read(all.kv_len.data, small.max_seqs), read(all.query_begin.data, small.max_seqs + 1),
          read(all.block_ids.data, std::int64_t{small.max_seqs} * small.max_blocks_per_seq)};
}

/// Lengths of all rows and ids that count: those behind a row's length, or of blocks behind a window, are nobody's.
bool holds(const Image& image, const BatchTables& tables) {
  const auto view = tables.view();
  for (int s = 0; s < small.max_seqs; ++s) {
    const auto row = static_cast<std::size_t>(s);
    const bool in_use = s < view.num_seqs();
    if (image.kv_len[row] != (in_use ? view.kv_len(s) : 0)) return false;
    if (image.query_begin[row + 1] != (in_use ? view.query_begin(s + 1) : tables.num_tokens())) return false;
    for (int i = 0; in_use && i < ceil_div(view.kv_len(s), block_size); ++i) {
      const std::int32_t expected = view.block_ids(s, i);
      const std::int32_t found = image.block_ids[row * small.max_blocks_per_seq + static_cast<std::size_t>(i)];
      if (expected != to_index(BlockId::none) && found != expected) return false;
    }
  }
  return image.query_begin[0] == 0;
}

/// Copies tables at once, without a wait for the kernel in front.
__global__ void snapshot_kernel(const std::int32_t* tables, std::int32_t* copy, int size) {
  for (int i = static_cast<int>(threadIdx.x); i < size; i += static_cast<int>(blockDim.x)) copy[i] = tables[i];
}

}  // namespace

TEST_CASE("uploaded tables are what was given, and sequences behind the fill are empty") {
  cuda::Workspace workspace({.max_seqs = 3, .max_blocks_per_seq = 4});
  const HostTables tables{{5, 6, 7, 8}, {3, 4}, {0, 1, 3}};
  const auto uploaded = workspace.upload(tables.view(2), nullptr);
  CHECK(uploaded.num_seqs() == 2);
  CHECK(uploaded.max_q_len == 2);
  CHECK(uploaded.max_kv_len == 9);
  CHECK(read(uploaded.block_ids.at(0, 0), 2) == std::vector<std::int32_t>{5, 6});
  CHECK(read(uploaded.block_ids.at(1, 0), 2) == std::vector<std::int32_t>{7, 8});

  const auto all = workspace.tables(2, 9);
  CHECK(all.num_seqs() == 3);
  CHECK(all.kv_len.data == uploaded.kv_len.data);
  CHECK(all.query_begin.data == uploaded.query_begin.data);
  CHECK(all.block_ids.data == uploaded.block_ids.data);
  CHECK(read(all.kv_len.data, 3) == std::vector<std::int32_t>{3, 4, 0});
  CHECK(read(all.query_begin.data, 4) == std::vector<std::int32_t>{0, 1, 3, 3});

  const HostTables none{{}, {}, {0}};
  static_cast<void>(workspace.upload(none.view(2), nullptr));
  CHECK(read(all.kv_len.data, 3) == std::vector<std::int32_t>{0, 0, 0});
  CHECK(read(all.query_begin.data, 4) == std::vector<std::int32_t>{0, 0, 0, 0});
}

TEST_CASE("the host may change its tables as soon as upload has returned") {
  cuda::Workspace workspace({.max_seqs = 1, .max_blocks_per_seq = 1});
  std::vector<std::int32_t> seen(100);
  cuda::DeviceArray<std::int32_t> log(seen.size());
  HostTables tables{{0}, {0}, {0, 1}};
  keep_busy(nullptr);
  for (int i = 0; i < 100; ++i) {
    tables.kv_len[0] = i;
    const auto uploaded = workspace.upload(tables.view(1), nullptr);
    cuda::check(
        cudaMemcpyAsync(log.data() + i, uploaded.kv_len.data, sizeof(std::int32_t), cudaMemcpyDeviceToDevice, nullptr),
        "log");
  }
  seen = read(log.data(), 100);
  for (int i = 0; i < 100; ++i) CHECK(seen[static_cast<std::size_t>(i)] == i);
}

TEST_CASE("the device holds the batch after every step of a random life, and most steps send only their changes") {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    CAPTURE(seed);
    Crowd crowd(seed);
    cuda::Workspace workspace(small);
    int num_whole = 0, num_by_changes = 0;
    for (int step = 0; step < 200; ++step) {
      CAPTURE(step);
      crowd.advance();
      static_cast<void>(workspace.upload(crowd.tables, nullptr));
      const auto whole = length_bytes + static_cast<std::size_t>(crowd.tables.num_seqs()) * row_bytes;
      REQUIRE(workspace.last_upload_bytes() <= whole);
      ++(workspace.last_upload_bytes() < whole ? num_by_changes : num_whole);
      REQUIRE(holds(image(workspace), crowd.tables));
    }
    CHECK(num_whole > 5);
    CHECK(num_by_changes > 100);
  }
}

TEST_CASE("a decode step of 256 sequences sends the lengths and the few new blocks") {
  constexpr int num_seqs = 256;
  BlockAllocator blocks{{.num_blocks = num_seqs * 66, .block_size = 16}};
  BatchTables tables({.max_seqs = num_seqs, .max_blocks_per_seq = 1000, .block_size = 16});
  std::vector<Sequence> sequences;
  for (int i = 0; i < num_seqs; ++i) {
    sequences.emplace_back(blocks);
    grow(sequences.back(), 1000 + i % 16);
    tables.add(sequences.back(), 1);
  }
  cuda::Workspace workspace({.max_seqs = num_seqs, .max_blocks_per_seq = 1024});
  constexpr std::size_t lengths = (2 * num_seqs + 1) * sizeof(std::int32_t);
  static_cast<void>(workspace.upload(tables, nullptr));
  CHECK(workspace.last_upload_bytes() == lengths + num_seqs * 1024 * sizeof(std::int32_t));
  for (int i = 0; i < 3; ++i) {
    for (int row = 0; row < num_seqs; ++row) {
      grow(sequences[static_cast<std::size_t>(row)], 1);
      tables.update(row, sequences[static_cast<std::size_t>(row)], 1);
    }
    static_cast<void>(workspace.upload(tables, nullptr));
    CHECK(workspace.last_upload_bytes() == lengths + num_seqs / 16 * change_bytes);
  }
  static_cast<void>(workspace.upload(tables, nullptr));
  CHECK(workspace.last_upload_bytes() == lengths);
}

TEST_CASE("batches that take turns in one workspace arrive whole, and so does the one behind tables from elsewhere") {
  Crowd left(11), right(12);
  cuda::Workspace workspace(small);
  for (int step = 0; step < 50; ++step) {
    CAPTURE(step);
    for (Crowd* crowd : {&left, &right}) {
      crowd->advance();
      static_cast<void>(workspace.upload(crowd->tables, nullptr));
      REQUIRE(holds(image(workspace), crowd->tables));
    }
    if (step % 5 != 0) continue;
    const HostTables elsewhere{std::vector<std::int32_t>(rows * columns, -5),
                               std::vector<std::int32_t>(rows, columns * block_size),
                               std::vector<std::int32_t>(rows + 1, 0)};
    static_cast<void>(workspace.upload(elsewhere.view(columns), nullptr));
    static_cast<void>(workspace.upload(right.tables, nullptr));
    REQUIRE(holds(image(workspace), right.tables));
  }
}

TEST_CASE("two workspaces follow one batch, each at its own pace") {
  Crowd crowd(21);
  cuda::Workspace often(small), seldom(small);
  int num_by_changes = 0;
  for (int step = 0; step < 200; ++step) {
    CAPTURE(step);
    crowd.advance();
    static_cast<void>(often.upload(crowd.tables, nullptr));
    REQUIRE(holds(image(often), crowd.tables));
    if (step % 3 != 0) continue;
    static_cast<void>(seldom.upload(crowd.tables, nullptr));
    REQUIRE(holds(image(seldom), crowd.tables));
    const auto whole = length_bytes + static_cast<std::size_t>(crowd.tables.num_seqs()) * row_bytes;
    if (seldom.last_upload_bytes() < whole) ++num_by_changes;
  }
  CHECK(num_by_changes > 10);
}

TEST_CASE("an upload that is refused changes nothing: the next one still sends only changes, and misses none") {
  cuda::Workspace workspace(small);
  std::vector<BlockId> ids(20, BlockId{7});
  BatchTables tables(batch_options), too_wide({.max_seqs = 1, .max_blocks_per_seq = columns + 4, .block_size = 1});
  tables.add(ids, 80, 1);
  static_cast<void>(workspace.upload(tables, nullptr));
  tables.add(std::span(ids).first(2), 8, 1);
  CHECK_THROWS_AS(static_cast<void>(workspace.upload(too_wide, nullptr)), InvalidArgument);
  Stream stream;
  const Graph graph(stream,
                    [&] { CHECK_THROWS_AS(static_cast<void>(workspace.upload(tables, stream)), InvalidArgument); });
  static_cast<void>(workspace.upload(tables, nullptr));
  CHECK(workspace.last_upload_bytes() == length_bytes + 2 * change_bytes);
  CHECK(holds(image(workspace), tables));
}

TEST_CASE("what is enqueued behind an upload sees that upload and no other, though the host is far ahead") {
  constexpr int num_steps = 100, size = 2 * small.max_seqs + 1 + small.max_seqs * small.max_blocks_per_seq;
  cuda::Workspace workspace(small);
  const auto all = workspace.tables(1, 1);
  cuda::DeviceArray<std::int32_t> log(num_steps * std::size_t{size});
  Stream stream;
  std::int32_t* next = log.data();
  cuda::DeviceArray<std::int32_t> replayed(size);
  const auto snapshot = [&](std::int32_t* to) {
    cuda::launch(snapshot_kernel, {.grid = dim3(1), .threads = 256}, cuda::Launch::overlap_previous, stream, "snapshot",
                 all.kv_len.data, to, size);
  };
  const Graph graph(stream, [&] { snapshot(replayed.data()); });
  Crowd crowd(41);
  std::vector<BatchTables> expected;
  keep_busy(stream);
  for (int step = 0; step < num_steps; ++step, next += size) {
    crowd.advance();
    static_cast<void>(workspace.upload(crowd.tables, stream));
    if (step % 2 == 0) {
      snapshot(next);
    } else {
      graph.replay(stream);
      cuda::check(cudaMemcpyAsync(next, replayed.data(), replayed.size_bytes(), cudaMemcpyDeviceToDevice, stream),
                  "log");
    }
    expected.push_back(crowd.tables);
  }
  const auto seen = read(log.data(), num_steps * std::int64_t{size});
  for (int step = 0; step < num_steps; ++step) {
    CAPTURE(step);
    const auto kv_len = seen.begin() + step * size, query_begin = kv_len + small.max_seqs;
    const auto block_ids = query_begin + small.max_seqs + 1;
    const Image image{{kv_len, query_begin}, {query_begin, block_ids}, {block_ids, kv_len + size}};
    REQUIRE(holds(image, expected[static_cast<std::size_t>(step)]));
  }
}

TEST_CASE("a batch larger than the workspace, and an impossible workspace, are refused by name") {
  cuda::Workspace workspace({.max_seqs = 1, .max_blocks_per_seq = 1});
  const HostTables two{{1, 2}, {1, 1}, {0, 1, 2}};
  CHECK_THROWS_WITH_AS(static_cast<void>(workspace.upload(two.view(1), nullptr)),
                       doctest::Contains("sequences, at most 1 expected, 2 given"), InvalidArgument);
  const HostTables wide{{1, 2}, {5}, {0, 1}};
  CHECK_THROWS_WITH_AS(static_cast<void>(workspace.upload(wide.view(2), nullptr)),
                       doctest::Contains("blocks of a sequence, at most 1 expected, 2 given"), InvalidArgument);
  CHECK_THROWS_AS(cuda::Workspace({.max_seqs = 0}), InvalidArgument);
  CHECK_THROWS_AS(cuda::Workspace({.num_buffers = 1}), InvalidArgument);
}

TEST_CASE("the workspace knows its GPU, and a failed CUDA call says what was being done") {
  CHECK(cuda::Workspace({.max_seqs = 1, .max_blocks_per_seq = 1}).device() == cuda::this_device());
  CHECK(cuda::this_device().arch >= 80);
  CHECK_THROWS_WITH_AS(cuda::check(cudaErrorInvalidValue, "a test"), doctest::Contains("a test: cudaErrorInvalidValue"),
                       CudaError);
}

TEST_CASE("a failure that was reported and caught is not reported again by the next call") {
  CHECK_THROWS_AS(cuda::DeviceArray<char>(std::size_t{1} << 60), CudaError);  // more memory than any GPU has
  CHECK(cudaGetLastError() == cudaSuccess);
}
