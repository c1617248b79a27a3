// What a native test reports: the first failures, and how many there are.
#pragma once

#include <cstdio>
#include <string_view>

namespace autodeco::tests {

inline int failures = 0;

inline void expect(bool condition, std::string_view what) {
  if (condition) return;
  if (++failures <= 20) std::printf("FAILED: %.*s\n", static_cast<int>(what.size()), what.data());
}

}  // namespace autodeco::tests
