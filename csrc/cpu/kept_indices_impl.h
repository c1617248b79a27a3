// The columns of the kept tokens of a range of rows: counts first, then the columns in index order.
#pragma once

#include <cstring>

#include "autodeco/kept_indices.h"
#include "kept_set.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

template <typename Element>
void count_kept_row(const KeptIndicesArguments& arguments, int64_t row_index,
                    const Row<Element>& row) {
  Search search;
  KeptSet kept;
  const Scaling scaling = scaling_of(arguments.filters, row_index);
  const RowStatus status = find_kept_set(row, arguments.filters, row_index, scaling, search, kept);
  arguments.status[row_index] = status;
  arguments.offsets[row_index + 1] = kept.all ? count_finite(row) : kept.count;
  arguments.last[row_index] = {kept.key, kept.last_tie};
}

// Columns of the kept tokens of a block, ascending. Returns how many.
template <typename Element>
int kept_columns(const Block<Element>& block, LastKept last, int32_t* columns) {
  const float cut = logit_of_key(last.key);
  int count = 0;
  for (int i = 0; i < block.padded; i += kLanes) {
    const Floats logits = load(block.data + i);
    for (uint32_t bits = bits_of(at_least(logits, splat(cut))); bits != 0; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      const int column = block.begin + i + lane;
      if (logits[lane] > cut || column <= last.tie) columns[count++] = column;
    }
  }
  return count;
}

template <typename Element>
void write_kept_row(const KeptIndicesArguments& arguments, const IdRange& range, LastKept last,
                    const Row<Element>& row) {
  alignas(64) int32_t columns[kBlock];
  int64_t place = range.begin;
  for (int number = 0; number < row.num_blocks() && place < range.end; ++number) {
    const int64_t count = kept_columns(row.block(number), last, columns);
    const int64_t left = range.end - place;
    const int64_t fitting = count < left ? count : left;
    std::memcpy(arguments.ids + place, columns, static_cast<size_t>(fitting) * sizeof(int32_t));
    place += fitting;
  }
}

void count_kept_rows(const KeptIndicesArguments& arguments, int64_t begin, int64_t end) {
  for (int64_t row_index = begin; row_index < end; ++row_index) {
    const int64_t columns = existing_columns(arguments.layout.vocab,
                                             value_at(arguments.filters.valid_vocab, row_index));
    with_row(arguments.dtype, arguments.logits, row_offset(arguments.layout, row_index), columns,
             [&](const auto& row) { count_kept_row(arguments, row_index, row); });
  }
}

void write_kept_rows(const KeptIndicesArguments& arguments, int64_t begin, int64_t end) {
  for (int64_t row_index = begin; row_index < end; ++row_index) {
    const IdRange range = id_range(arguments, row_index);
    if (range.begin >= range.end) continue;
    const int64_t columns = existing_columns(arguments.layout.vocab,
                                             value_at(arguments.filters.valid_vocab, row_index));
    with_row(
        arguments.dtype, arguments.logits, row_offset(arguments.layout, row_index), columns,
        [&](const auto& row) { write_kept_row(arguments, range, arguments.last[row_index], row); });
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
