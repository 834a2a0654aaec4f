// The main of every GPU test: like main.cpp, but exits with 77, which CTest reads as skipped, where there is no GPU.
#include <cuda_runtime_api.h>

#include <cstdio>

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

int main(int argc, char** argv) {
  int num_gpus = 0;
  if (cudaGetDeviceCount(&num_gpus) != cudaSuccess || num_gpus == 0) {
    std::puts("no GPU: skipped");
    return 77;
  }
  doctest::Context context(argc, argv);
  return context.run();
}
