// DeviceInfo: what policies need to know of a GPU; plain numbers, so that they can be tested without one.
#pragma once

#include <cstddef>

namespace pagedkv {
inline namespace v0 {
namespace cuda {

struct DeviceInfo {
  int arch = 0;                          // 10 * major + minor of the compute capability: 80 for an A100, 90 for an H200
  int num_sms = 0;                       // streaming multiprocessors
  std::size_t shared_bytes_per_cta = 0;  // what one CTA can have, opted in

  friend bool operator==(const DeviceInfo&, const DeviceInfo&) = default;
};

}  // namespace cuda
}  // namespace v0
}  // namespace pagedkv
