// Workspace: tables arrive whole at addresses that never change, rows behind the fill are empty, too much is refused.
#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "pagedkv/cuda/device.cuh"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/workspace.cuh"

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
  // The device is busy at first, so that copies wait while the host runs ahead.
  const auto sleep = [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(50)); };
  cuda::check(cudaLaunchHostFunc(nullptr, sleep, nullptr), "sleep");
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
