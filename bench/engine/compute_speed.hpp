// How fast the machine multiplies: the ceiling of steps that compute.
#pragma once

namespace bench {

/// FLOPs per second of multiply-adds in registers, float32, on all of `num_threads` threads. Some tenths of a second.
double host_compute_speed(int num_threads);

/// FLOPs per second of one large bf16 matrix product by cuBLAS, 8192 x 8192 x 8192; takes 0.4 GB of the current GPU for
/// a moment. Throws CudaError.
double gpu_compute_speed();

}  // namespace bench
