// Maximum and sum of exp(l - maximum) of a range of rows, in one read: what any sampler has to do,
// and what the others are measured against.
#pragma once

#include "autodeco/floor.h"
#include "row_summary.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

template <typename Element>
void floor_row(const Row<Element>& row, float* output) {
  const Scaling scaling(1.0f);
  RowSummary summary;
  summarize(row, &scaling, summary);
  output[0] = summary.max;
  output[1] = static_cast<float>(static_cast<double>(summary.mass) / kMassScale);
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
