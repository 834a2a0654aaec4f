// The machine's memory: how much of it there is, and how fast it is read.
#pragma once

#include <optional>

#include "engine/memory_plan.hpp"

namespace engine {

MachineMemory host_memory();

/// Bytes per second that `num_threads` threads read of memory that no cache holds: the best of a few passes over
/// 256 MiB, together some tenths of a second.
double host_read_speed(int num_threads);

#if defined(PAGEDKV_ENGINE_CUDA)
/// The current GPU; none where there is no driver, no GPU, or no machine code for it in this program.
std::optional<MachineMemory> gpu_memory();

/// Bytes per second of a kernel that reads up to 4 GiB in order: the best of a few. Takes half of the free memory at
/// most, for some milliseconds. Throws CudaError.
double gpu_read_speed();
#endif

}  // namespace engine
