// Whether a mass is probably reached near the maximum, from a small sample of the row.
#pragma once

#include "sampled_interval.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// Whether listing the tokens from the logit `near` on is probably quicker than a guess and its
// read: they are few, and the mass below them is at most `most_below`. That mass is of tokens that
// are light beside what may be left out, so a small sample tells it well.
template <typename Element>
bool probably_near(const Row<Element>& row, const Scaling& scaling, const RowSummary& summary,
                   float near, uint64_t most_below, uint32_t shift) {
  constexpr double kFew = 4096.0;  // so many take as long as a guess and its read
  int blocks = 0;
  for (int number = 0; number < row.num_blocks(); ++number) {
    blocks += summary.block_max[number] >= near;
  }
  if (blocks <= row.num_blocks() / 2) return true;  // the others are not read
  Ints near_lanes = {};
  Floats weights_below = {};
  int columns = 0;
  for (int number = 0; number < row.num_blocks(); number += 2) {
    const Block<Element> block = row.block(number);
    const int begin = Sample::first_column(number, block.padded, shift);
    columns += Sample::kColumns;
    for (int i = begin; i < begin + Sample::kColumns; i += kLanes) {
      const Floats logits = load(block.data + i);
      count_where(at_least(logits, splat(near)), near_lanes);
      add_where(greater(splat(near), logits), weights_below, scaling.weights(logits, summary.max));
    }
  }
  const uint64_t count = count_of(near_lanes);
  if (count == 0) return true;  // it misses what every second block has: so may that of the guess
  const double times = static_cast<double>(row.vocab()) / columns;
  return times * static_cast<double>(count) <= kFew &&
         times * static_cast<double>(sum_of_lanes(weights_below)) * kMassScale <=
             static_cast<double>(most_below);
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
