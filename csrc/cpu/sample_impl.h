// Fused temperature, top_k, top_p, min_p and inverse-CDF draw for a range of rows.
#pragma once

#include "autodeco/philox.h"
#include "autodeco/sample.h"
#include "kept_set.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// floor(u * mass) for u = uniform53 * 2^-53, exactly.
inline uint64_t scaled_uniform(uint64_t uniform53, uint64_t mass) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(uniform53) * mass) >> 53);
}

// Turns masses into running sums and returns the last.
inline uint64_t accumulate(uint64_t* masses, int size) {
  uint64_t running = 0;
  for (int i = 0; i < size; ++i) masses[i] = running += masses[i];
  return running;
}

// The first place whose running sum exceeds the threshold, which the last one does.
inline int place_of(const uint64_t* running, int size, uint64_t threshold) {
  int low = 0;
  int high = size - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (running[middle] > threshold) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The kept column of a block at which `share` of its kept mass, in index order, is exceeded. Masses
// are relative to the block's own maximum, so that none of them is lost in a block of rare tokens.
template <typename Element>
int column_in_block(const Block<Element>& block, const Scaling& scaling, float block_max,
                    const KeptSet& kept, double share) {
  uint64_t running[kBlock];
  uint64_t total = 0;
  for (int i = 0; i < block.padded; i += kLanes) {
    const Floats logits = load(block.data + i);
    const Floats weights = scaling.weights(logits, block_max);
    for (int lane = 0; lane < kLanes; ++lane) {
      const bool keep = kept.contains(logits[lane], block.begin + i + lane);
      running[i + lane] = total += keep ? fixed_mass(weights[lane]) : 0;
    }
  }
  const uint64_t threshold = static_cast<uint64_t>(share * static_cast<double>(total));
  return block.begin + place_of(running, block.padded, threshold < total ? threshold : total - 1);
}

inline float saturated(double logprob) {
  return logprob < -static_cast<double>(kLargestFloat) ? -kLargestFloat
                                                       : static_cast<float>(logprob);
}

// ln of a fixed-point mass, in units of the largest weight.
inline double log_of_mass(uint64_t mass) {
  return std::log(static_cast<double>(mass) / kMassScale);
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

// The masses of the kept tokens, in the list or per block, become running sums.
template <typename Element>
void draw_tokens(const SampleArguments& arguments, int64_t row_index, const Row<Element>& row,
                 const Scaling& scaling, const KeptSet& kept, Search& search) {
  int64_t* tokens = arguments.tokens + row_index * arguments.num_samples;
  if (kept.count == 1) {
    for (int64_t sample = 0; sample < arguments.num_samples; ++sample) {
      tokens[sample] = search.summary.argmax;
    }
    return;
  }
  uint64_t* running = kept.listed ? search.list.masses : search.summary.block_mass;
  const int size = kept.listed ? search.list.size : row.num_blocks();
  const uint64_t total = accumulate(running, size);
  const uint64_t seed = static_cast<uint64_t>(value_at(arguments.seed, row_index));
  uint64_t offset = static_cast<uint64_t>(value_at(arguments.offset, row_index));
  if (arguments.add_row_to_offset) offset += static_cast<uint64_t>(row_index);
  for (int64_t sample = 0; sample < arguments.num_samples; ++sample) {
    const uint64_t uniform53 =
        philox_uniform53(seed, offset, RandomStream::kSample, static_cast<uint32_t>(sample));
    const uint64_t threshold = scaled_uniform(uniform53, total);
    const int place = place_of(running, size, threshold);
    if (kept.listed) {
      tokens[sample] = search.list.columns[place];
      continue;
    }
    const uint64_t before = place > 0 ? running[place - 1] : 0;
    const double share =
        static_cast<double>(threshold - before) / static_cast<double>(running[place] - before);
    tokens[sample] =
        column_in_block(row.block(place), scaling, search.summary.block_max[place], kept, share);
  }
}

template <typename Element>
void write_info(const SampleArguments& arguments, int64_t row_index, const Row<Element>& row,
                const KeptSet& kept, Search& search) {
  const float temperature = value_at(arguments.filters.temperature, row_index);
  const bool greedy = temperature == 0.0f;
  RowSummary& summary = search.summary;
  arguments.kept[row_index] = kept.all ? count_finite(row) : kept.count;
  arguments.log_kept_mass[row_index] =
      kept.mass >= kept.row_mass || greedy
          ? 0.0f
          : static_cast<float>(log_of_mass(kept.mass) - log_of_mass(kept.row_mass));
  const double log_kept = log_of_mass(kept.mass);
  const double log_row = log_of_mass(sum_masses(row, Scaling(1.0f), summary));
  for (int64_t sample = 0; sample < arguments.num_samples; ++sample) {
    const int64_t slot = row_index * arguments.num_samples + sample;
    const double below_max =
        static_cast<double>(row[arguments.tokens[slot]]) - static_cast<double>(summary.max);
    arguments.logprobs[slot] =
        greedy ? 0.0f : saturated(below_max / static_cast<double>(temperature) - log_kept);
    arguments.raw_logprobs[slot] = saturated(below_max - log_row);
  }
}

template <typename Element>
void sample_row(const SampleArguments& arguments, int64_t row_index, const Row<Element>& row) {
  Search search;
  KeptSet kept;
  const Scaling scaling = scaling_of(arguments.filters, row_index);
  const RowStatus status = find_kept_set(row, arguments.filters, row_index, scaling, search, kept);
  arguments.status[row_index] = status;
  if (arguments.valid != nullptr) arguments.valid[row_index] = status == RowStatus::kValid;
  if (status != RowStatus::kValid) {
    write_invalid(arguments, row_index);
    return;
  }
  draw_tokens(arguments, row_index, row, scaling, kept, search);
  if (arguments.kept != nullptr) write_info(arguments, row_index, row, kept, search);
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
