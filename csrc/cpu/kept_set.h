// The kept set of a row, found without sorting: what top_k, top_p and min_p leave.
//
// Every filter keeps a prefix of the total order (logit descending, index ascending), so the kept
// set is described by the key of its last token and, among tokens equal to it, the last index.
#pragma once

#include <cmath>

#include "autodeco/filters.h"
#include "prefix_search.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

constexpr uint32_t kLowestFiniteKey = 0x00800000u;  // of -FLT_MAX
static_assert(logit_of_key(kLowestFiniteKey) == -kLargestFloat);

template <typename Element>
class KeptSetFinder {
 public:
  KeptSetFinder(const Row<Element>& row, const Scaling& scaling, Search& search)
      : row_(row), scaling_(scaling), search_(search), prefixes_(row, scaling, search) {}

  // The tokens that top_k, top_p and min_p leave, in that order.
  KeptSet find(const FilterParameters& filters, int64_t row_index) {
    const float temperature = value_at(filters.temperature, row_index);
    const float top_p = value_at(filters.top_p, row_index);
    const float min_p = value_at(filters.min_p, row_index);
    const int64_t top_k = value_at(filters.top_k, row_index);
    if (temperature == 0.0f || top_p <= 0.0f || min_p > 1.0f || top_k == 1) {
      prefixes_.keep_first_token();
      return prefixes_.kept();
    }
    prefixes_.keep_all(kLowestFiniteKey);
    const uint32_t cut = min_p > 0.0f ? key_of_min_p(temperature, min_p) : kLowestFiniteKey;
    const bool any_mass = top_p < 1.0f;
    if (top_k > 0 && top_k < row_.vocab()) {
      keep_first(static_cast<uint64_t>(top_k), cut, !any_mass);
    }
    if (any_mass) keep_mass(top_p, cut);
    prefixes_.keep_from(cut);
    return prefixes_.kept();
  }

 private:
  void keep_first(uint64_t top_k, uint32_t cut, bool last) {
    uint32_t near = kLowestFiniteKey;
    if (top_k <= static_cast<uint64_t>(row_.num_blocks())) near = key_of_block_max(top_k);
    const uint32_t floor = last && cut > near ? cut : near;
    prefixes_.keep_prefix({Measure::kCount, top_k, near, kLowestFiniteKey, floor, last});
  }

  // A lower bound of the k-th largest logit: the k-th largest of the blocks' maxima.
  uint32_t key_of_block_max(uint64_t k) {
    CandidateList& list = search_.list;
    list.clear();
    for (int number = 0; number < row_.num_blocks(); ++number) {
      if (search_.summary.block_max[number] == -kInfinity) continue;
      list.logits[list.size] = search_.summary.block_max[number];
      list.masses[list.size] = 0;
      ++list.size;
    }
    if (static_cast<uint64_t>(list.size) < k) return kLowestFiniteKey;
    list.pad();
    return select_in_list(list, Measure::kCount, k, {}, search_.fine).key;
  }

  void keep_mass(float top_p, uint32_t cut) {
    const KeptSet& kept = prefixes_.kept();
    const double mass = static_cast<double>(kept.mass);
    const double wanted = std::ceil(static_cast<double>(top_p) * mass);
    uint64_t target = kept.mass;
    if (wanted < mass) target = static_cast<uint64_t>(wanted);
    if (target == 0) target = 1;
    // Tokens of at most (1 - P) / V of the mass are too few to matter; half of that is safe from
    // rounding where 1 - P is not itself of its size.
    const double left_out = (1.0 - static_cast<double>(top_p)) * mass;
    uint32_t lowest = kept.key;
    if (top_p < 1.0f - 1e-5f) lowest = key_of_mass(left_out / (2.0 * row_.vocab()));
    if (lowest < kept.key) lowest = kept.key;
    const uint32_t floor = cut > lowest ? cut : lowest;
    // A token of a language model that is 1000 times less probable than what is left out is rarely
    // needed; those above it are few.
    const uint32_t near = key_of_mass(left_out / 1024.0);
    prefixes_.keep_prefix({Measure::kMass, target, near, lowest, floor, true});
  }

  // Key of a logit whose mass is at most this.
  uint32_t key_of_mass(double mass) const {
    const double bits = std::log2(mass / kMassScale);
    if (!(bits > -1000.0)) return kLowestFiniteKey;
    const double logit = static_cast<double>(search_.summary.max) +
                         bits / static_cast<double>(scaling_.bits_per_unit) /
                             static_cast<double>(scaling_.logit_factor) /
                             static_cast<double>(scaling_.difference_factor);
    if (!(logit > -static_cast<double>(kLargestFloat))) return kLowestFiniteKey;
    if (logit >= static_cast<double>(search_.summary.max)) return prefixes_.max_key();
    return order_key(static_cast<float>(logit));
  }

  // Key of the smallest float l >= max + T ln(min_p): tokens below have a probability below min_p
  // times the largest.
  uint32_t key_of_min_p(float temperature, float min_p) const {
    const double cut = static_cast<double>(search_.summary.max) +
                       static_cast<double>(temperature) * std::log(static_cast<double>(min_p));
    if (!(cut > -static_cast<double>(kLargestFloat))) return kLowestFiniteKey;
    float lowest = static_cast<float>(cut);
    if (static_cast<double>(lowest) < cut) lowest = logit_of_key(order_key(lowest) + 1);
    return order_key(lowest);
  }

  const Row<Element>& row_;
  const Scaling& scaling_;
  Search& search_;
  PrefixSearch<Element> prefixes_;
};

// Where no weight is asked for, at temperature 0, any other will do.
inline Scaling scaling_of(const FilterParameters& filters, int64_t row_index) {
  const float temperature = value_at(filters.temperature, row_index);
  return Scaling(temperature > 0.0f ? temperature : 1.0f);
}

// Reads a row and finds its kept set, which stays empty where the row is not valid.
template <typename Element>
RowStatus find_kept_set(const Row<Element>& row, const FilterParameters& filters, int64_t row_index,
                        const Scaling& scaling, Search& search, KeptSet& kept) {
  const RowStatus status = filter_status(filters, row_index);
  if (status != RowStatus::kValid) return status;
  const bool greedy = value_at(filters.temperature, row_index) == 0.0f;
  summarize(row, greedy ? nullptr : &scaling, search.summary);
  if (search.summary.status != RowStatus::kValid) return search.summary.status;
  kept = KeptSetFinder(row, scaling, search).find(filters, row_index);
  return RowStatus::kValid;
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
