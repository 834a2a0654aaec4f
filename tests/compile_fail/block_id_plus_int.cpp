// A block's id is not a number to calculate with.
// error: no match for .*operator
#include "pagedkv/core/ids.hpp"

#ifdef MUST_COMPILE
int next(pagedkv::BlockId id) { return pagedkv::to_index(id) + 1; }
#else
int next(pagedkv::BlockId id) { return id + 1; }
#endif
