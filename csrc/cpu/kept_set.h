// The kept set of a row, found without sorting: a weighted radix select over order keys.
//
// Every filter keeps a prefix of the total order (logit descending, index ascending), so the kept
// set is described by the key of its last token and, among tokens equal to it, the last index.
// A prefix is found in three digits of the key (11 + 11 + 10 bits): one histogram per digit, counts
// and masses together, whatever the row looks like.
#pragma once

#include <cmath>

#include "autodeco/order.h"
#include "row_scan.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

struct KeptSet {
  uint32_t key = 0;       // of the last kept token
  int64_t last_tie = -1;  // tokens with this key are kept up to this index
  int64_t count = 0;
  uint64_t mass = 0;
  uint64_t row_mass = 0;  // of all columns, before any filter

  bool contains(uint32_t token_key, int64_t index) const {
    return token_key > key || (token_key == key && index <= last_tie);
  }
};

constexpr int kRadixBits = 11;
constexpr int kRadixBins = 1 << kRadixBits;
constexpr int kDigitShifts[] = {21, 10, 0};
constexpr int kNumDigits = 3;

struct Histogram {
  uint64_t mass[kRadixBins];
  uint32_t count[kRadixBins];

  void clear() {
    for (int bin = 0; bin < kRadixBins; ++bin) {
      mass[bin] = 0;
      count[bin] = 0;
    }
  }
};

// Digits of the tokens whose leading digits are `leading` (everything at the first digit).
template <typename Element>
void fill_histogram(const Row<Element>& row, const Scaling& scaling, int digit, uint32_t leading,
                    Histogram& histogram) {
  histogram.clear();
  const int shift = kDigitShifts[digit];
  const int leading_shift = digit == 0 ? 0 : kDigitShifts[digit - 1];
  const uint32_t bin_mask =
      digit == 0 ? kRadixBins - 1 : (1u << (kDigitShifts[digit - 1] - shift)) - 1;
  alignas(64) uint64_t masses[kBlock];
  alignas(64) uint32_t keys[kBlock];
  for_each_block(row, [&](const Block& block) {
    masses_of(block, scaling, masses);
    for (int i = 0; i < block.padded; ++i) keys[i] = order_key(block.logits[i]);
    for (int i = 0; i < block.size; ++i) {
      if (digit != 0 && (keys[i] >> leading_shift) != leading) continue;
      const uint32_t bin = (keys[i] >> shift) & bin_mask;
      histogram.count[bin] += 1;
      histogram.mass[bin] += masses[i];
    }
    return true;
  });
}

template <typename Element>
int64_t index_of_tie(const Row<Element>& row, uint32_t key, int64_t wanted) {
  int64_t result = -1;
  for_each_block(row, [&](const Block& block) {
    for (int i = 0; i < block.size; ++i) {
      if (order_key(block.logits[i]) == key && --wanted == 0) {
        result = block.begin + i;
        return false;
      }
    }
    return true;
  });
  return result;
}

enum class Measure { kCount, kMass };

// The shortest prefix of the order whose count or mass reaches `target`, which must not exceed that
// of the finite tokens. `first_digit` is the histogram of the first digit; `scratch` is
// overwritten.
template <typename Element>
KeptSet shortest_prefix(const Row<Element>& row, const Scaling& scaling,
                        const Histogram& first_digit, Measure measure, uint64_t target,
                        Histogram& scratch) {
  KeptSet kept;
  const Histogram* histogram = &first_digit;
  uint32_t leading = 0;
  uint64_t count_above = 0;
  uint64_t mass_above = 0;
  int bin = 0;
  for (int digit = 0; digit < kNumDigits; ++digit) {
    if (digit > 0) {
      fill_histogram(row, scaling, digit, leading, scratch);
      histogram = &scratch;
    }
    const int digit_bits =
        digit == 0 ? 32 - kDigitShifts[0] : kDigitShifts[digit - 1] - kDigitShifts[digit];
    for (bin = (1 << digit_bits) - 1; bin > 0; --bin) {
      const uint64_t reached = measure == Measure::kCount ? count_above + histogram->count[bin]
                                                          : mass_above + histogram->mass[bin];
      if (reached >= target) break;
      count_above += histogram->count[bin];
      mass_above += histogram->mass[bin];
    }
    leading = (leading << digit_bits) | static_cast<uint32_t>(bin);
  }
  // All tokens left in the bin are equal, so they share one mass.
  const uint64_t ties = histogram->count[bin];
  const uint64_t tie_mass = histogram->mass[bin] / ties;
  const uint64_t needed = measure == Measure::kCount
                              ? target - count_above
                              : (target - mass_above + tie_mass - 1) / tie_mass;
  kept.key = leading;
  kept.count = static_cast<int64_t>(count_above + needed);
  kept.mass = mass_above + needed * tie_mass;
  kept.last_tie =
      needed == ties ? row.vocab : index_of_tie(row, leading, static_cast<int64_t>(needed));
  return kept;
}

// Drops tokens with a probability below min_p times the largest: l < max + T ln(min_p).
template <typename Element>
void apply_min_p(const Row<Element>& row, const RowScan& scan, const Scaling& scaling,
                 float temperature, float min_p, KeptSet& kept) {
  const double cut = static_cast<double>(scan.max) +
                     static_cast<double>(temperature) * std::log(static_cast<double>(min_p));
  if (cut <= static_cast<double>(scan.min_finite)) return;
  float lowest = static_cast<float>(cut);  // then the smallest float >= cut
  if (static_cast<double>(lowest) < cut) lowest = logit_of_key(order_key(lowest) + 1);
  const uint32_t key = order_key(lowest);
  if (key <= kept.key) return;
  kept.key = key;
  kept.last_tie = row.vocab;
  kept.count = 0;
  kept.mass = 0;
  alignas(64) uint64_t masses[kBlock];
  for_each_block(row, [&](const Block& block) {
    masses_of(block, scaling, masses);
    for (int i = 0; i < block.padded; ++i) {
      const bool keep = order_key(block.logits[i]) >= key;
      kept.count += keep;
      kept.mass += keep ? masses[i] : 0;
    }
    return true;
  });
}

// The tokens that top_k, top_p and min_p leave, in that order. The row must be valid.
template <typename Element>
KeptSet find_kept_set(const Row<Element>& row, const RowScan& scan, const FilterParameters& filters,
                      int64_t row_index) {
  const float temperature = value_at(filters.temperature, row_index);
  const float top_p = value_at(filters.top_p, row_index);
  const float min_p = value_at(filters.min_p, row_index);
  const int64_t top_k = value_at(filters.top_k, row_index);

  KeptSet first;
  first.key = order_key(scan.max);
  first.last_tie = scan.argmax;
  first.count = 1;
  first.mass = fixed_mass(1.0f);
  if (temperature == 0.0f) {
    first.row_mass = first.mass;
    return first;
  }
  const Scaling scaling(scan, temperature);
  if (top_p <= 0.0f || min_p > 1.0f || top_k == 1) {
    first.row_mass = total_mass(row, scaling);
    return first;
  }

  KeptSet kept;
  kept.key = order_key(-kInfinity);
  kept.count = scan.num_finite;
  const bool limits_count = top_k > 0 && top_k < scan.num_finite;
  if (!limits_count && top_p >= 1.0f) {
    kept.row_mass = total_mass(row, scaling);
    kept.mass = kept.row_mass;
  } else {
    Histogram first_digit;
    Histogram scratch;
    fill_histogram(row, scaling, 0, 0, first_digit);
    uint64_t row_mass = 0;
    for (int bin = 0; bin < kRadixBins; ++bin) row_mass += first_digit.mass[bin];
    kept.mass = row_mass;
    if (limits_count) {
      kept = shortest_prefix(row, scaling, first_digit, Measure::kCount,
                             static_cast<uint64_t>(top_k), scratch);
    }
    if (top_p < 1.0f) {
      const double wanted = std::ceil(static_cast<double>(top_p) * static_cast<double>(kept.mass));
      uint64_t target = kept.mass;
      if (wanted < static_cast<double>(kept.mass)) target = static_cast<uint64_t>(wanted);
      kept = shortest_prefix(row, scaling, first_digit, Measure::kMass, target > 0 ? target : 1,
                             scratch);
    }
    kept.row_mass = row_mass;
  }
  if (min_p > 0.0f) apply_min_p(row, scan, scaling, temperature, min_p, kept);
  return kept;
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
