// Everything that needs no CUDA Toolkit.
#pragma once

#include "pagedkv/attention/online_softmax.hpp"
#include "pagedkv/attention/plan.hpp"
#include "pagedkv/attention/problem.hpp"
#include "pagedkv/attention/variant.hpp"
#include "pagedkv/attention/variants.hpp"
#include "pagedkv/cache/tables_view.hpp"
#include "pagedkv/core/config.hpp"
#include "pagedkv/core/dtype.hpp"
#include "pagedkv/core/error.hpp"
#include "pagedkv/core/ids.hpp"
#include "pagedkv/core/math.hpp"
#include "pagedkv/core/view.hpp"
#include "pagedkv/storage/kv_layout.hpp"
#include "pagedkv/storage/kv_pool.hpp"
#include "pagedkv/storage/kv_view.hpp"
