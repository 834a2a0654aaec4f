// A stranger's CUDA program: compiled and linked, not run.
#include "pagedkv/pagedkv.cuh"

__global__ void round_trip_kernel(float* x) {
  x[threadIdx.x] = pagedkv::to_float(pagedkv::from_float<pagedkv::bf16>(x[threadIdx.x]));
}

int main() {
  round_trip_kernel<<<1, 32>>>(nullptr);
  return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
}
