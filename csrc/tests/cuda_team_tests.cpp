// How many blocks share a row, and their scratch: what docs/kernels.md writes down.
#include <cstdlib>

#include "emulated_rows.h"
#include "team.cuh"
#include "team.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;

struct Case {
  int64_t rows;
  int64_t vocab;
  int multiprocessors;
  int blocks;
};

void expect_blocks(const Case& wanted, int got, const char* kind) {
  char text[200];
  std::snprintf(text, sizeof text, "%s of [%lld, %lld] on %d multiprocessors: wanted %d, got %d",
                kind, static_cast<long long>(wanted.rows), static_cast<long long>(wanted.vocab),
                wanted.multiprocessors, wanted.blocks, got);
  expect(got == wanted.blocks, text);
}

// 8192 columns a block at least, at most two blocks a multiprocessor.
constexpr Case kClusters[] = {
    {1, 1, 132, 1},       {1, 16383, 132, 1},    {1, 16384, 132, 2},     {1, 32767, 132, 2},
    {1, 32768, 132, 4},   {1, 65535, 132, 4},    {1, 65536, 132, 8},     {1, 151936, 132, 8},
    {1, 1 << 20, 132, 8}, {33, 151936, 132, 8},  {34, 151936, 132, 4},   {66, 151936, 132, 4},
    {67, 151936, 132, 2}, {132, 151936, 132, 2}, {133, 151936, 132, 1},  {66, 32000, 132, 2},
    {67, 32000, 132, 2},  {27, 151936, 108, 8},  {28, 151936, 108, 4},   {108, 151936, 108, 2},
    {1, 151936, 1, 2},    {2, 151936, 1, 1},     {4096, 151936, 132, 1},
};

// At most one block a multiprocessor, and 1 MiB of scratch for all rows.
constexpr Case kPortable[] = {{1, 16383, 108, 1},    {1, 16384, 108, 2},   {1, 151936, 108, 8},
                              {13, 151936, 108, 8},  {14, 151936, 108, 4}, {16, 151936, 108, 4},
                              {17, 151936, 108, 1},  {17, 32000, 108, 2},  {18, 32000, 108, 1},
                              {1, 151936, 1, 1},     {6, 151936, 46, 4},   {5, 151936, 46, 8},
                              {11, 1 << 20, 142, 8}, {12, 1 << 20, 142, 1}};

int portable_team_size(int64_t rows, int64_t vocab, int multiprocessors) {
  const int64_t scratch = static_cast<int64_t>(cuda::team_scratch_bytes(vocab));
  return cuda::portable_team_size(rows, vocab, multiprocessors, scratch);
}

void scratch_is_what_the_documentation_says() {
  expect(cuda::team_scratch_bytes(32000) == 59392, "scratch of 32,000 columns");
  expect(cuda::team_scratch_bytes(151936) == 63232, "scratch of 151,936 columns");
  expect(cuda::team_scratch_bytes(1 << 20) == 91264, "scratch of 2^20 columns");
}

void portable_teams_stay_within_their_bounds() {
  for (const int64_t vocab : {1, 16384, 32000, 151936, 1 << 20}) {
    const int64_t per_row = static_cast<int64_t>(cuda::team_scratch_bytes(vocab));
    for (const int multiprocessors : {1, 46, 108, 142}) {
      for (int64_t rows = 1; rows < 600; ++rows) {
        const int size = portable_team_size(rows, vocab, multiprocessors);
        expect(size == 1 || size == 2 || size == 4 || size == 8, "a team of 1, 2, 4 or 8");
        if (size == 1) continue;
        expect(rows * size <= multiprocessors, "all blocks are resident at once");
        expect(rows * per_row <= 1 << 20, "bytes of scratch");
      }
    }
  }
}

}  // namespace

int main() {
  for (const Case& wanted : kClusters) {
    const int got = cuda::cluster_size(wanted.rows, wanted.vocab, wanted.multiprocessors);
    expect_blocks(wanted, got, "cluster");
  }
  for (const Case& wanted : kPortable) {
    const int got = portable_team_size(wanted.rows, wanted.vocab, wanted.multiprocessors);
    expect_blocks(wanted, got, "team without clusters");
  }
  scratch_is_what_the_documentation_says();
  portable_teams_stay_within_their_bounds();
  std::printf("%s\n", failures == 0 ? "blocks of a row: all passed" : "blocks of a row: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
