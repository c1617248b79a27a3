// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, «Parallel random
// numbers: as easy as 1, 2, 3» (SC 2011), as semantics.md, section 1.7, uses it.
#pragma once

#include <cstdint>

namespace autodeco {

// Kernels draw from the first. semantics.md reserves the others; the demo's training draws from the
// last, in Python.
enum class RandomStream : uint32_t {
  kSample = 0,
  kSpeculativeAccept = 1,
  kResidual = 2,
  kEasyTokenDrop = 3,
};

struct PhiloxBlock {
  uint32_t word[4];
};

static constexpr PhiloxBlock philox4x32_10(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53u;
  constexpr uint64_t kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u;
  constexpr uint32_t kWeyl1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = kMultiplier0 * counter.word[0];
    const uint64_t product1 = kMultiplier1 * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// The 53-bit integer n of the uniform number u = n * 2^-53 in [0, 1). Kernels work with the integer
// so that comparing u with fixed-point masses is exact. `sample_index` is 0 for a single draw.
static constexpr uint64_t philox_uniform53(uint64_t seed, uint64_t offset, RandomStream stream,
                                           uint32_t sample_index) {
  const PhiloxBlock counter = {{static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32),
                                static_cast<uint32_t>(stream), sample_index}};
  const PhiloxBlock random =
      philox4x32_10(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return ((static_cast<uint64_t>(random.word[1]) << 32) | random.word[0]) >> 11;
}

}  // namespace autodeco
