// Fused temperature, top_k, top_p, min_p and inverse-CDF draw for a range of rows.
#pragma once

#include "autodeco/philox.h"
#include "autodeco/sample.h"
#include "kept_set.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// Draws are served in groups: one walk over the row for up to this many uniform numbers.
constexpr int kDrawGroup = 64;

struct Draw {
  uint64_t threshold;  // the token is the first whose running mass exceeds this
  int64_t sample;
};

// floor(u * mass) for u = uniform53 * 2^-53, exactly.
inline uint64_t scaled_uniform(uint64_t uniform53, uint64_t mass) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(uniform53) * mass) >> 53);
}

inline void sort_by_threshold(Draw* draws, int count) {
  for (int i = 1; i < count; ++i) {
    const Draw draw = draws[i];
    int j = i;
    for (; j > 0 && draws[j - 1].threshold > draw.threshold; --j) draws[j] = draws[j - 1];
    draws[j] = draw;
  }
}

// Writes the token of every draw: the smallest kept index whose running mass, in index order,
// exceeds the draw's threshold. Thresholds are sorted and below the kept mass.
template <typename Element>
void walk_kept_tokens(const Row<Element>& row, const Scaling& scaling, const KeptSet& kept,
                      const Draw* draws, int count, int64_t* tokens) {
  alignas(64) uint64_t masses[kBlock];
  uint64_t running = 0;
  int next = 0;
  for_each_block(row, [&](const Block& block) {
    masses_of(block, scaling, masses);
    for (int i = 0; i < block.padded; ++i) {
      const bool keep = kept.contains(order_key(block.logits[i]), block.begin + i);
      masses[i] = keep ? masses[i] : 0;
    }
    const uint64_t block_mass = sum_of(masses, block.padded);
    if (running + block_mass > draws[next].threshold) {
      uint64_t reached = running;
      for (int i = 0; i < block.size && next < count; ++i) {
        reached += masses[i];
        while (next < count && reached > draws[next].threshold) {
          tokens[draws[next].sample] = block.begin + i;
          ++next;
        }
      }
    }
    running += block_mass;
    return next < count;
  });
}

inline float saturated(double logprob) {
  return logprob < -static_cast<double>(kLargestFloat) ? -kLargestFloat
                                                       : static_cast<float>(logprob);
}

// ln of a fixed-point mass, in units of the largest weight.
inline double log_of_mass(uint64_t mass) {
  return std::log(static_cast<double>(mass) / kMassScale);
}

template <typename Element>
void write_info(const SampleArguments& arguments, int64_t row_index, const Row<Element>& row,
                const RowScan& scan, const KeptSet& kept, float temperature) {
  const bool greedy = temperature == 0.0f;
  arguments.kept[row_index] = kept.count;
  arguments.log_kept_mass[row_index] =
      kept.mass == kept.row_mass
          ? 0.0f
          : static_cast<float>(log_of_mass(kept.mass) - log_of_mass(kept.row_mass));
  const double log_kept = log_of_mass(kept.mass);
  const double log_row = log_of_mass(total_mass(row, Scaling(scan, 1.0f)));
  for (int64_t sample = 0; sample < arguments.num_samples; ++sample) {
    const int64_t slot = row_index * arguments.num_samples + sample;
    const double below_max = static_cast<double>(to_float(row.data[arguments.tokens[slot]])) -
                             static_cast<double>(scan.max);
    arguments.logprobs[slot] =
        greedy ? 0.0f : saturated(below_max / static_cast<double>(temperature) - log_kept);
    arguments.raw_logprobs[slot] = saturated(below_max - log_row);
  }
}

inline void write_invalid(const SampleArguments& arguments, int64_t row_index) {
  const bool info = arguments.kept != nullptr;
  for (int64_t sample = 0; sample < arguments.num_samples; ++sample) {
    const int64_t slot = row_index * arguments.num_samples + sample;
    arguments.tokens[slot] = -1;
    if (info) arguments.logprobs[slot] = arguments.raw_logprobs[slot] = kNaN;
  }
  if (info) {
    arguments.kept[row_index] = 0;
    arguments.log_kept_mass[row_index] = kNaN;
  }
}

template <typename Element>
void draw_tokens(const SampleArguments& arguments, int64_t row_index, const Row<Element>& row,
                 const RowScan& scan, const KeptSet& kept, float temperature) {
  int64_t* tokens = arguments.tokens + row_index * arguments.num_samples;
  if (kept.count == 1) {
    for (int64_t sample = 0; sample < arguments.num_samples; ++sample) tokens[sample] = scan.argmax;
    return;
  }
  const Scaling scaling(scan, temperature);
  const uint64_t seed = static_cast<uint64_t>(value_at(arguments.seed, row_index));
  uint64_t offset = static_cast<uint64_t>(value_at(arguments.offset, row_index));
  if (arguments.add_row_to_offset) offset += static_cast<uint64_t>(row_index);
  Draw draws[kDrawGroup];
  for (int64_t begin = 0; begin < arguments.num_samples; begin += kDrawGroup) {
    const int64_t left = arguments.num_samples - begin;
    const int count = left < kDrawGroup ? static_cast<int>(left) : kDrawGroup;
    for (int i = 0; i < count; ++i) {
      const uint64_t uniform53 =
          philox_uniform53(seed, offset, RandomStream::kSample, static_cast<uint32_t>(begin + i));
      draws[i] = {scaled_uniform(uniform53, kept.mass), begin + i};
    }
    sort_by_threshold(draws, count);
    walk_kept_tokens(row, scaling, kept, draws, count, tokens);
  }
}

template <typename Element>
void sample_row(const SampleArguments& arguments, int64_t row_index, const Row<Element>& row) {
  RowStatus status = filter_status(arguments.filters, row_index);
  RowScan scan;
  if (status == RowStatus::kValid) {
    scan = scan_row(row);
    status = scan.status;
  }
  arguments.status[row_index] = status;
  if (arguments.valid != nullptr) arguments.valid[row_index] = status == RowStatus::kValid;
  if (status != RowStatus::kValid) {
    write_invalid(arguments, row_index);
    return;
  }
  const float temperature = value_at(arguments.filters.temperature, row_index);
  const KeptSet kept = find_kept_set(row, scan, arguments.filters, row_index);
  draw_tokens(arguments, row_index, row, scan, kept, temperature);
  if (arguments.kept != nullptr) write_info(arguments, row_index, row, scan, kept, temperature);
}

void sample_rows(const SampleArguments& arguments, int64_t begin, int64_t end) {
  for (int64_t row_index = begin; row_index < end; ++row_index) {
    const int64_t columns = existing_columns(arguments.layout.vocab,
                                             value_at(arguments.filters.valid_vocab, row_index));
    with_row(arguments.dtype, arguments.logits, row_offset(arguments.layout, row_index), columns,
             [&](const auto& row) { sample_row(arguments, row_index, row); });
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
