// Prints the dynamic shared memory of the row kernels, as the launchers ask for it: one line
// `vocab bytes` for each vocabulary of the command line.
#include <cstdio>
#include <cstdlib>

#include "../csrc/cuda/loss_memory.cuh"

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    const long long vocab = std::atoll(arguments[i]);
    const size_t row = autodeco::cuda::shared_memory_bytes(vocab);
    const size_t loss = autodeco::cuda::loss_gradient_shared_memory_bytes(vocab);
    std::printf("%lld %zu\n", vocab, row > loss ? row : loss);
  }
}
