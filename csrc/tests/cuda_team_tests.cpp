// How many blocks share a row: the function that docs/kernels.md writes down, at its steps.
#include <cstdlib>

#include "emulated_rows.h"
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

}  // namespace

int main() {
  for (const Case& wanted : kClusters) {
    const int got = cuda::cluster_size(wanted.rows, wanted.vocab, wanted.multiprocessors);
    expect_blocks(wanted, got, "cluster");
  }
  for (const Case& wanted : kPortable) {
    // As at 32,000, 151,936 and 2^20 columns (docs/kernels.md).
    const int64_t scratch = wanted.vocab <= 32000 ? 59392 : wanted.vocab <= 151936 ? 63232 : 91264;
    for (const int64_t element_bytes : {2, 4}) {
      const int got = cuda::portable_team_size(wanted.rows, wanted.vocab, element_bytes,
                                               wanted.multiprocessors, scratch);
      expect_blocks(wanted, got, "team without clusters");
    }
  }
  std::printf("%s\n", failures == 0 ? "blocks of a row: all passed" : "blocks of a row: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
