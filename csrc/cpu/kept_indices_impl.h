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
  RowStatus status = filter_status(arguments.filters, row_index);
  RowScan scan;
  if (status == RowStatus::kValid) {
    scan = scan_row(row);
    status = scan.status;
  }
  arguments.status[row_index] = status;
  KeptSet kept;  // of no token
  if (status == RowStatus::kValid) kept = find_kept_set(row, scan, arguments.filters, row_index);
  arguments.offsets[row_index + 1] = kept.count;
  arguments.last[row_index] = {kept.key, static_cast<int32_t>(kept.last_tie)};
}

// Columns of the kept tokens of a block, ascending. Returns how many.
inline int kept_columns(const Block& block, LastKept last, int32_t* columns) {
  const int32_t begin = static_cast<int32_t>(block.begin);
  alignas(64) int32_t keep[kBlock];
  int count = 0;
  for (int i = 0; i < block.padded; ++i) {
    keep[i] = is_kept(last, order_key(block.logits[i]), begin + i) ? 1 : 0;
    count += keep[i];
  }
  if (count == 0) return 0;
  // Without a branch: a column that is not kept is overwritten by the next.
  int size = 0;
  for (int i = 0; i < block.size; ++i) {
    columns[size] = begin + i;
    size += keep[i];
  }
  return count;
}

template <typename Element>
void write_kept_row(const KeptIndicesArguments& arguments, const IdRange& range, LastKept last,
                    const Row<Element>& row) {
  alignas(64) int32_t columns[kBlock];
  int64_t place = range.begin;
  for_each_block(row, [&](const Block& block) {
    const int64_t count = kept_columns(block, last, columns);
    const int64_t left = range.end - place;
    const int64_t fitting = count < left ? count : left;
    std::memcpy(arguments.ids + place, columns, static_cast<size_t>(fitting) * sizeof(int32_t));
    place += fitting;
    return place < range.end;
  });
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
