// The kept set of a row in eight bytes.
#pragma once

#include <cstdint>

namespace autodeco {

// The last token of a kept set, which is a prefix of the order: a token is kept if its key is
// larger, or if its key is equal and its column at most `tie`. The key is the device's own.
struct LastKept {
  uint32_t key;
  int32_t tie;
};

// By value: a loop over a reference that it must read again is not vectorised. `static`: see
// order.h.
static constexpr bool is_kept(LastKept last, uint32_t key, int32_t column) {
  return key > last.key || (key == last.key && column <= last.tie);
}

}  // namespace autodeco
