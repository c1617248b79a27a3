// How many blocks share a row: a function of the shape of the launch and of the device alone, not
// visible in the result. Host code only; needs no CUDA header.
#pragma once

#include "autodeco/row_layout.h"

namespace autodeco::cuda {

// Fewer rows than multiprocessors are spread over all of them.
constexpr int team_size(int64_t num_rows, int64_t vocab, int64_t most_blocks) {
  constexpr int64_t kMinColumnsPerBlock = 8192;
  int size = 1;
  while (size < 8 && num_rows * size * 2 <= most_blocks &&
         vocab >= size * 2 * kMinColumnsPerBlock) {
    size *= 2;
  }
  return size;
}

constexpr int cluster_size(int64_t num_rows, int64_t vocab, int multiprocessors) {
  return team_size(num_rows, vocab, 2 * static_cast<int64_t>(multiprocessors));
}

// Without clusters a team needs scratch: teams of a launch have at most 1 MiB together. All blocks
// must be resident at once, and one on every multiprocessor always is.
constexpr int portable_team_size(int64_t num_rows, int64_t vocab, int multiprocessors,
                                 int64_t scratch_bytes_per_row) {
  constexpr int64_t kMostBytes = int64_t{1} << 20;
  if (num_rows * scratch_bytes_per_row > kMostBytes) return 1;
  return team_size(num_rows, vocab, multiprocessors);
}

// What a launch on the current device needs of TeamScratch: no bytes where it has clusters or where
// one block takes a row.
struct TeamNeeds {
  int blocks_per_row = 1;
  int64_t bytes = 0;
};
TeamNeeds team_needs(const RowLayout& layout);

}  // namespace autodeco::cuda
