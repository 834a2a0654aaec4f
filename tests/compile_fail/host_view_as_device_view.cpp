// A host view does not pass for a device view.
// error: could not convert
#include "pagedkv/core/view.hpp"

using HostView = pagedkv::View<float, 2, pagedkv::Space::host>;
using DeviceView = pagedkv::View<float, 2, pagedkv::Space::device>;

#ifdef MUST_COMPILE
HostView same_side(HostView view) { return view; }
#else
DeviceView other_side(HostView view) { return view; }
#endif
