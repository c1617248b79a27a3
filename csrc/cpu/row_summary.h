// The first read of a row: maximum and sum of weights of every block.
#pragma once

#include <cmath>

#include "autodeco/row_status.h"
#include "row.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

struct RowSummary {
  RowStatus status = RowStatus::kValid;
  float max = -kInfinity;
  int argmax = 0;  // lowest index among equals
  uint64_t mass = 0;
  float block_max[kMaxBlocks];
  uint64_t block_mass[kMaxBlocks];  // in units of the largest weight of the row
};

// The largest of logits that are looked at kColumns at a time; where one is NaN, any of them or
// NaN.
template <typename Element>
class LargestOf {
 public:
  static constexpr int kColumns = 4 * kLanes;

  void add(const Element* data) {
    for (int chain = 0; chain < 4; ++chain) {
      chains_[chain] = larger(chains_[chain], load(data + chain * kLanes));
    }
  }
  float value() const {
    return largest_lane(larger(larger(chains_[0], chains_[1]), larger(chains_[2], chains_[3])));
  }

 private:
  Floats chains_[4] = {splat(-kInfinity), splat(-kInfinity), splat(-kInfinity), splat(-kInfinity)};
};

// Floats of 16 bits are compared as they are: as signed integers those that are not negative are in
// order, and so are the negative ones as unsigned integers, the other way round. The largest logit
// of a lane is one of these two.
template <typename Element>
  requires(sizeof(Element) == 2)
class LargestOf<Element> {
 public:
  static constexpr int kColumns = 4 * kLanes;

  void add(const Element* data) {
    for (int half = 0; half < 2; ++half) {
      Shorts bits;
      std::memcpy(&bits, data + half * kElements, sizeof(bits));
      largest_ = bits > largest_ ? bits : largest_;
      const UnsignedShorts unsigned_bits = reinterpret_cast<UnsignedShorts>(bits);
      smallest_ = unsigned_bits < smallest_ ? unsigned_bits : smallest_;
    }
  }
  float value() const {
    Element elements[2 * kElements] = {};
    std::memcpy(elements, &largest_, sizeof(largest_));
    std::memcpy(elements + kElements, &smallest_, sizeof(smallest_));
    const TwoFloats of_largest = load_two(elements);
    const TwoFloats of_smallest = load_two(elements + kElements);
    return largest_lane(larger(larger(of_largest.first, of_largest.second),
                               larger(of_smallest.first, of_smallest.second)));
  }

 private:
  static constexpr int kElements = 2 * kLanes;

  // The first logits replace them: they are the least, -0.0 among the signed ones.
  Shorts largest_ = Shorts{} + std::numeric_limits<int16_t>::min();
  UnsignedShorts smallest_ = UnsignedShorts{} + std::numeric_limits<uint16_t>::max();
};

template <typename Element>
float block_max(const Block<Element>& block) {
  LargestOf<Element> largest;
  for (int i = 0; i < block.padded; i += largest.kColumns) largest.add(block.data + i);
  return largest.value();
}

struct MaxAndWeight {
  float max;     // where a logit is NaN, any of them or NaN
  float weight;  // NaN if a logit is
};

// The largest logit of a block and the sum of its weights relative to `reference`, in one loop.
template <bool kPlain, typename Element>
MaxAndWeight block_max_and_weight(const Block<Element>& block, const Scaling& scaling,
                                  float reference) {
  constexpr int kChains = 4;
  Floats sums[kChains] = {};
  Floats largest[2] = {splat(-kInfinity), splat(-kInfinity)};
  for (int i = 0; i < block.padded; i += kChains * kLanes) {
    for (int chain = 0; chain < kChains; chain += 2) {
      const TwoFloats logits = load_two(block.data + i + chain * kLanes);
      largest[0] = larger(largest[0], logits.first);
      largest[1] = larger(largest[1], logits.second);
      sums[chain] += scaling.weights<kPlain>(logits.first, reference);
      sums[chain + 1] += scaling.weights<kPlain>(logits.second, reference);
    }
  }
  return {largest_lane(larger(largest[0], largest[1])),
          sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]))};
}

// NaN if a logit is.
template <bool kPlain, typename Element>
float block_weight(const Block<Element>& block, const Scaling& scaling, float reference) {
  return block_max_and_weight<kPlain>(block, scaling, reference).weight;
}

template <typename Element>
int64_t count_finite(const Row<Element>& row) {
  int64_t count = 0;
  for (int number = 0; number < row.num_blocks(); ++number) {
    const Block<Element> block = row.block(number);
    for (int i = 0; i < block.padded; i += kLanes) {
      count += __builtin_popcount(bits_of(greater(load(block.data + i), splat(-kInfinity))));
    }
  }
  return count;
}

// Which of the reasons makes a row invalid that is known to be.
template <typename Element>
RowStatus find_fault(const Row<Element>& row) {
  bool any_nan = false;
  bool any_infinity = false;
  for (int column = 0; column < row.vocab(); ++column) {
    any_nan |= row[column] != row[column];
    any_infinity |= row[column] == kInfinity;
  }
  if (any_nan) return RowStatus::kLogitNaN;
  return any_infinity ? RowStatus::kLogitPositiveInfinity : RowStatus::kNoFiniteLogit;
}

template <typename Element>
bool any_nan(const Block<Element>& block) {
  Mask nan = {};
  for (int i = 0; i < block.padded; i += kLanes) nan |= is_nan(load(block.data + i));
  return bits_of(nan) != 0;
}

// Turns sums of weights, each relative to its block's reference, into masses; returns their total.
inline uint64_t masses_of_blocks(int num_blocks, const float* block_sum, const float* reference,
                                 const Scaling& scaling, RowSummary& summary) {
  uint64_t total = 0;
  double weight = 0.0;
  for (int number = 0; number < num_blocks; ++number) {
    // In double, because what is lost here is lost in every block with this reference.
    if (number == 0 || reference[number] != reference[number - 1]) {
      weight = std::exp2(scaling.precise_exponent(reference[number], summary.max));
    }
    // No more than tokens at the maximum have, whatever the rounding: 2^20 of them fill 64 bits.
    const double sum = static_cast<double>(block_sum[number]) * weight;
    const double possible = sum < kBlock ? sum : kBlock;
    const uint64_t mass = static_cast<uint64_t>(possible * kMassScale + 0.5);  // to nearest
    summary.block_mass[number] = mass;
    total += mass;
  }
  return total;
}

// Sum of the masses of the row at another scaling than that of the first read. The masses of the
// blocks become those at this scaling.
template <typename Element>
uint64_t sum_masses(const Row<Element>& row, const Scaling& scaling, RowSummary& summary) {
  float block_sum[kMaxBlocks];
  with_plainness(scaling, [&](auto plain) {
    for (int number = 0; number < row.num_blocks(); ++number) {
      const float max = summary.block_max[number];
      block_sum[number] =
          max > -kInfinity ? block_weight<plain()>(row.block(number), scaling, max) : 0.0f;
    }
  });
  return masses_of_blocks(row.num_blocks(), block_sum, summary.block_max, scaling, summary);
}

// One read of the row: read(number, block, max) sets the maximum of the block, and tells whether a
// logit is NaN. The masses are left as they are.
template <typename Element, typename Read>
void read_blocks(const Row<Element>& row, RowSummary& summary, Read&& read) {
  bool nan = false;
  int max_block = 0;
  summary.max = -kInfinity;
  for (int number = 0; number < row.num_blocks(); ++number) {
    float max = -kInfinity;
    nan |= read(number, row.block(number), max);
    summary.block_max[number] = max;
    if (max > summary.max) {
      summary.max = max;
      max_block = number;
    }
  }
  if (nan || !(summary.max < kInfinity) || summary.max == -kInfinity) {
    summary.status = find_fault(row);
    return;
  }
  summary.status = RowStatus::kValid;
  summary.argmax = max_block * kBlock;
  while (row[summary.argmax] != summary.max) ++summary.argmax;
}

// Calls read(reference), which returns the maximum of the block and sums of weights relative to the
// reference: the maximum of an earlier block, so that one loop finds maximum and sums. With the
// block's own, there would be nothing to do while its logits come from memory. A float is as
// precise at any scale. The reference changes only where it must, because a block that waits for
// the maximum of the one before takes longer.
template <typename Element, typename Read>
auto read_relative(const Block<Element>& block, const Scaling& scaling, float& reference,
                   Read&& read) {
  // So that an exponent is rounded by 5e-7 at most where tokens are heavier than the reference.
  constexpr float kMostBitsAbove = 4.0f;
  if (reference > -kInfinity) {
    const auto found = read(reference);
    if (!(scaling.exponents(splat(found.max), reference)[0] > kMostBitsAbove)) return found;
  }
  reference = block_max(block);
  // A masked block is read as well: NaN may hide in it.
  return read(reference > -kInfinity ? reference : 0.0f);
}

// Maxima, and the masses at `scaling` where that is not null: one read of the row.
template <typename Element>
void summarize(const Row<Element>& row, const Scaling* scaling, RowSummary& summary) {
  if (scaling == nullptr) {
    read_blocks(row, summary, [](int, const Block<Element>& block, float& max) {
      max = block_max(block);
      return any_nan(block);
    });
    return;
  }
  float block_sum[kMaxBlocks];
  float references[kMaxBlocks];
  float reference = -kInfinity;
  with_plainness(*scaling, [&](auto plain) {
    read_blocks(row, summary, [&](int number, const Block<Element>& block, float& max) {
      const MaxAndWeight found = read_relative(block, *scaling, reference, [&](float relative_to) {
        return block_max_and_weight<plain()>(block, *scaling, relative_to);
      });
      max = found.max;
      block_sum[number] = found.weight;  // none where the block lies far below the reference
      references[number] = reference;
      return found.weight != found.weight;
    });
  });
  if (summary.status != RowStatus::kValid) return;
  summary.mass = masses_of_blocks(row.num_blocks(), block_sum, references, *scaling, summary);
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
