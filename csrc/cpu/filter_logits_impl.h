// logits / T inside the kept set, filter_value outside, for a range of rows.
#pragma once

#include "autodeco/filter_logits.h"
#include "kept_set.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

inline void fill(float* output, int64_t begin, int64_t end, float value) {
  for (int64_t i = begin; i < end; ++i) output[i] = value;
}

// Reads every logit before it writes the output of the same column, so that the output may be the
// logits themselves.
template <typename Element>
void write_block(const Block<Element>& block, const KeptSet& kept, float temperature,
                 float filter_value, float* output) {
  const float cut = logit_of_key(kept.key);
  alignas(64) float last[kLanes];
  Ints columns = {};
  for (int lane = 0; lane < kLanes; ++lane) columns[lane] = block.begin + lane;
  for (int i = 0; i < block.padded; i += kLanes) {
    const Floats logits = load(block.data + i);
    const Floats scaled = logits / temperature;
    const Floats low = larger(splat(-kLargestFloat), scaled);
    const Floats saturated = low > kLargestFloat ? splat(kLargestFloat) : low;
    const Ints keep = (logits > cut) | ((logits == cut) & (columns + i <= kept.last_tie));
    const Floats result = keep ? saturated : splat(filter_value);
    const int column = block.begin + i;
    if (i + kLanes <= block.size) {
      store(output + column, result);
    } else {
      store(last, result);
      for (int lane = 0; i + lane < block.size; ++lane) output[column + lane] = last[lane];
    }
  }
}

template <typename Element>
void filter_row(const FilterLogitsArguments& arguments, int64_t row_index,
                const Row<Element>& row) {
  float* output = arguments.output + row_offset(arguments.output_layout, row_index);
  Search search;
  KeptSet kept;
  const Scaling scaling = scaling_of(arguments.filters, row_index);
  const RowStatus status = find_kept_set(row, arguments.filters, row_index, scaling, search, kept);
  arguments.status[row_index] = status;
  if (status != RowStatus::kValid) {
    fill(output, 0, arguments.layout.vocab, arguments.filter_value);
    return;
  }
  const float row_temperature = value_at(arguments.filters.temperature, row_index);
  const float temperature = row_temperature == 0.0f ? 1.0f : row_temperature;
  for (int number = 0; number < row.num_blocks(); ++number) {
    const Block<Element> block = row.block(number);
    if (search.summary.block_max[number] < logit_of_key(kept.key)) {
      fill(output, block.begin, block.begin + block.size, arguments.filter_value);
    } else {
      write_block(block, kept, temperature, arguments.filter_value, output);
    }
  }
  fill(output, row.vocab(), arguments.layout.vocab, arguments.filter_value);
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
