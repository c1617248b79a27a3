// The floor kernel on the emulated device: it reads every logit exactly once, whatever the shape.
#include <algorithm>
#include <cstdlib>

#include "emulated_kernels.h"
#include "floor.cuh"
#include "floor.h"

namespace {

using namespace autodeco;
using namespace autodeco::tests;

template <typename Element>
void check(int num_rows, int vocab, int misaligned, std::mt19937_64& random) {
  std::vector<std::vector<float>> rows;
  for (int row = 0; row < num_rows; ++row) {
    rows.push_back(make_row(RowKind::kGaussian, vocab, random));
  }
  const Batch<Element> batch(rows, misaligned);
  FloorArguments arguments;
  arguments.logits = batch.memory.data() + misaligned;
  arguments.dtype = dtype_of<Element>();
  arguments.layout = batch.layout();
  arguments.columns = cuda::floor_parts(num_rows, vocab);
  std::vector<float> output(static_cast<size_t>(num_rows * arguments.columns), -7.0f);
  arguments.output = output.data();
  gpu::Launch where;
  where.blocks = num_rows * arguments.columns;
  where.threads = cuda::kFloorThreads;
  where.shared_bytes = cuda::kMaxWarps * sizeof(float);
  const uint64_t before = emulation::device.bytes_loaded;
  gpu::launch(&cuda::floor_kernel<Element>, where, arguments);
  const uint64_t loaded = emulation::device.bytes_loaded - before;
  expect(loaded == sizeof(Element) * static_cast<uint64_t>(num_rows) * static_cast<uint64_t>(vocab),
         "the floor reads every logit once");
  for (int row = 0; row < num_rows; ++row) {
    const auto begin = output.begin() + row * arguments.columns;
    const float max = *std::max_element(begin, begin + arguments.columns);
    const std::vector<float>& logits = batch.rows[static_cast<size_t>(row)];
    expect(max == *std::max_element(logits.begin(), logits.end()), "the floor finds the maximum");
  }
}

}  // namespace

int main() {
  std::mt19937_64 random(5);
  for (const int vocab : {1, 7, 1000, 1024, 4097, 40000}) {
    for (const int num_rows : {1, 3, 700}) {
      if (num_rows * vocab > 200000) continue;  // a thread is a fiber: slow
      check<float>(num_rows, vocab, 0, random);
      check<cuda::BFloat16>(num_rows, vocab, 0, random);
      check<cuda::Float16>(num_rows, vocab, 3, random);
    }
  }
  std::printf("%s\n", failures == 0 ? "emulated floor: all passed" : "emulated floor: FAILED");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
