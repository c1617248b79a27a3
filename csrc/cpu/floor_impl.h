// Maximum and sum of exp(l - maximum) of a range of rows, one read for each: what any sampler has
// to do, and what the others are measured against.
#pragma once

#include "autodeco/floor.h"
#include "row_summary.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

template <typename Element>
void floor_row(const Row<Element>& row, float* output) {
  float max = -kInfinity;
  for (int number = 0; number < row.num_blocks(); ++number) {
    const float of_block = block_max(row.block(number));
    max = max > of_block ? max : of_block;
  }
  const Scaling scaling(1.0f);
  double sum = 0.0;
  for (int number = 0; number < row.num_blocks(); ++number) {
    sum += static_cast<double>(block_weight<true>(row.block(number), scaling, max));
  }
  output[0] = max;
  output[1] = static_cast<float>(sum);
}

void floor_rows(const FloorArguments& arguments, int64_t begin, int64_t end) {
  for (int64_t row_index = begin; row_index < end; ++row_index) {
    with_row(arguments.dtype, arguments.logits, row_offset(arguments.layout, row_index),
             arguments.layout.vocab, [&](const auto& row) {
               floor_row(row, arguments.output + row_index * arguments.columns);
             });
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
