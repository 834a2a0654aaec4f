// A count does not become a block's id by accident.
// error: cannot convert
#include "pagedkv/core/ids.hpp"

#ifdef MUST_COMPILE
pagedkv::BlockId first() { return pagedkv::BlockId{0}; }
#else
pagedkv::BlockId first() { return 0; }
#endif
