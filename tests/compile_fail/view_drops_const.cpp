// A read-only view does not become a writable one.
// error: could not convert
#include "pagedkv/core/view.hpp"

#ifdef MUST_COMPILE
pagedkv::View<const float, 1> weaken(pagedkv::View<float, 1> view) { return view; }
#else
pagedkv::View<float, 1> strengthen(pagedkv::View<const float, 1> view) { return view; }
#endif
