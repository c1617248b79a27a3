// logits / T inside the kept set, filter_value outside, for a range of rows.
#pragma once

#include "autodeco/filter_logits.h"
#include "kept_set.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

template <typename Element>
void filter_row(const FilterLogitsArguments& arguments, int64_t row_index,
                const Row<Element>& row) {
  float* output = arguments.output + row_offset(arguments.output_layout, row_index);
  const int64_t vocab = arguments.layout.vocab;
  RowStatus status = filter_status(arguments.filters, row_index);
  RowScan scan;
  if (status == RowStatus::kValid) {
    scan = scan_row(row);
    status = scan.status;
  }
  arguments.status[row_index] = status;
  if (status != RowStatus::kValid) {
    for (int64_t i = 0; i < vocab; ++i) output[i] = arguments.filter_value;
    return;
  }
  const KeptSet kept = find_kept_set(row, scan, arguments.filters, row_index);
  const float row_temperature = value_at(arguments.filters.temperature, row_index);
  const float temperature = row_temperature == 0.0f ? 1.0f : row_temperature;
  const float filter_value = arguments.filter_value;
  for_each_block(row, [&](const Block& block) {
    for (int i = 0; i < block.size; ++i) {
      const float scaled = block.logits[i] / temperature;
      const float low = scaled < -kLargestFloat ? -kLargestFloat : scaled;
      const float saturated = low > kLargestFloat ? kLargestFloat : low;
      const bool keep = kept.contains(order_key(block.logits[i]), block.begin + i);
      output[block.begin + i] = keep ? saturated : filter_value;
    }
    return true;
  });
  for (int64_t i = row.vocab; i < vocab; ++i) output[i] = filter_value;
}

void filter_logits_rows(const FilterLogitsArguments& arguments, int64_t begin, int64_t end) {
  for (int64_t row_index = begin; row_index < end; ++row_index) {
    const int64_t columns = existing_columns(arguments.layout.vocab,
                                             value_at(arguments.filters.valid_vocab, row_index));
    with_row(arguments.dtype, arguments.logits, row_offset(arguments.layout, row_index), columns,
             [&](const auto& row) { filter_row(arguments, row_index, row); });
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
