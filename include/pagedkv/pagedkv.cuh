// Everything, for translation units that nvcc compiles.
#pragma once

#include "pagedkv/cuda/attend.cuh"
#include "pagedkv/cuda/decode.cuh"
#include "pagedkv/cuda/device.cuh"
#include "pagedkv/cuda/device.hpp"
#include "pagedkv/cuda/dispatch.hpp"
#include "pagedkv/cuda/error.cuh"
#include "pagedkv/cuda/memory.cuh"
#include "pagedkv/cuda/policy.hpp"
#include "pagedkv/cuda/pool.cuh"
#include "pagedkv/cuda/prefill.cuh"
#include "pagedkv/cuda/staging.cuh"
#include "pagedkv/cuda/step.cuh"
#include "pagedkv/cuda/workspace.cuh"
#include "pagedkv/pagedkv.hpp"
