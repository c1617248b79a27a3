// Where the running count or mass of tokens, from the largest logit downwards, reaches a target: a
// weighted radix select over order keys.
#pragma once

#include "candidates.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// Counts and masses of the keys of an interval, in bins of 2^shift keys.
struct Histogram {
  static constexpr int kBins = 2048;

  Interval interval;
  int shift;
  int num_bins;
  uint64_t mass[kBins];
  uint32_t count[kBins];

  void start(Interval keys, int max_bins) {
    interval = keys;
    shift = 0;
    while ((keys.high - keys.low) >> shift >= static_cast<uint32_t>(max_bins)) ++shift;
    num_bins = static_cast<int>((keys.high - keys.low) >> shift) + 1;
    for (int bin = 0; bin < num_bins; ++bin) {
      mass[bin] = 0;
      count[bin] = 0;
    }
  }

  // Tokens outside the interval are left out.
  void add(const CandidateList& list) {
    const uint32_t width = interval.high - interval.low;
    alignas(64) uint32_t places[kBlock];
    for (int begin = 0; begin < list.size; begin += kBlock) {
      const int end = list.size - begin < kBlock ? list.size : begin + kBlock;
      for (int i = begin; i < end; ++i) {
        places[i - begin] = order_key(list.logits[i]) - interval.low;
      }
      for (int i = begin; i < end; ++i) {
        const uint32_t place = places[i - begin];
        if (place > width) continue;
        mass[place >> shift] += list.masses[i];
        count[place >> shift] += 1;
      }
    }
  }

  // The bin, from the highest down to that of `lowest`, in which `above` reaches the target, or the
  // last that holds anything. `above` becomes what lies above that bin, and `keys` its keys from
  // `lowest` on; returns what it holds.
  Amount find(Measure measure, uint64_t target, uint32_t lowest, Amount& above,
              Interval& keys) const {
    // Where rounding has put the target above the bins, the first token of them decides.
    if (target <= above.of(measure)) target = above.of(measure) + 1;
    int found = num_bins - 1;
    const int last_bin =
        lowest > interval.low ? static_cast<int>((lowest - interval.low) >> shift) : 0;
    Amount reached = above;
    for (int bin = num_bins - 1; bin >= last_bin && reached.of(measure) < target; --bin) {
      if (count[bin] == 0) continue;
      found = bin;
      above = reached;
      reached.add({count[bin], mass[bin]});
    }
    keys.low = interval.low + (static_cast<uint32_t>(found) << shift);
    const uint32_t last = keys.low + ((1u << shift) - 1);
    keys.high = last < interval.high ? last : interval.high;
    if (keys.low < lowest) keys.low = lowest;
    return {count[found], mass[found]};
  }
};

// The last token of a prefix of the order.
struct PrefixEnd {
  uint32_t key;
  uint64_t ties;       // tokens with that key
  uint64_t kept_ties;  // so many of them belong to the prefix
  Amount amount;       // of the prefix
};

// The end of the prefix among `ties` equal tokens, below which nothing is needed.
inline PrefixEnd end_among_ties(uint32_t key, uint64_t ties, uint64_t tie_mass, Measure measure,
                                uint64_t target, const Amount& above) {
  PrefixEnd end = {key, ties, ties, above};
  const uint64_t reached = above.of(measure);
  const uint64_t missing = target > reached ? target - reached : 1;
  if (measure == Measure::kCount) {
    end.kept_ties = missing < ties ? missing : ties;
  } else if (tie_mass > 0) {
    const uint64_t needed = (missing - 1) / tie_mass + 1;  // missing + tie_mass could wrap around
    end.kept_ties = needed < ties ? needed : ties;
  }
  end.amount.add({end.kept_ties, end.kept_ties * tie_mass});
  return end;
}

// The same among a few tokens, of which none is left out.
inline PrefixEnd end_among_few(uint32_t* keys, uint64_t* masses, int size, Measure measure,
                               uint64_t target, Amount above) {
  for (;;) {
    uint32_t largest = 0;
    for (int i = 0; i < size; ++i) largest = keys[i] > largest ? keys[i] : largest;
    Amount ties;
    int left = 0;
    for (int i = 0; i < size; ++i) {
      if (keys[i] == largest) {
        ties.add({1, masses[i]});
      } else {
        keys[left] = keys[i];
        masses[left] = masses[i];
        ++left;
      }
    }
    if (left == 0 || above.of(measure) + ties.of(measure) >= target) {
      return end_among_ties(largest, ties.count, ties.mass / ties.count, measure, target, above);
    }
    above.add(ties);
    size = left;
  }
}

// From the lowest to the highest of the listed tokens within these keys, which hold one.
inline Interval listed_within(const CandidateList& list, Interval keys) {
  const Floats low = splat(keys.low_logit());
  const Floats high = splat(keys.high_logit());
  Floats largest = splat(-kInfinity);
  Floats largest_negated = splat(-kInfinity);
  for (int i = 0; i < list.size; i += kLanes) {
    const Floats logits = load(list.logits + i);  // padded with -inf
    const Mask inside = at_least(logits, low) & at_least(high, logits);
    largest = choose(inside & greater(logits, largest), logits, largest);
    largest_negated = choose(inside & greater(-logits, largest_negated), -logits, largest_negated);
  }
  return {order_key(-largest_lane(largest_negated)), order_key(largest_lane(largest))};
}

// Among the listed tokens, which have masses; a target out of reach ends with the last of them.
// The list must not be empty.
inline PrefixEnd select_in_list(const CandidateList& list, Measure measure, uint64_t target,
                                Amount above, Histogram& histogram) {
  constexpr int kFew = 32;
  // Clearing bins costs as much as a list of a few times their number, another round as the list.
  const int bins = list.size < 4096 ? 512 : Histogram::kBins;
  static_assert(Histogram::kBins >= 512);
  Interval keys = listed_within(list, {order_key(-kLargestFloat), order_key(kLargestFloat)});
  Amount inside = {static_cast<uint64_t>(list.size), list.mass()};
  while (keys.low != keys.high && inside.count > kFew) {
    histogram.start(keys, bins);
    histogram.add(list);
    inside = histogram.find(measure, target, keys.low, above, keys);
    // Where they are equal, which is not known yet, another round would be for nothing.
    if (inside.count > kFew) keys = listed_within(list, keys);
  }
  if (inside.count > kFew) {
    return end_among_ties(keys.low, inside.count, inside.mass / inside.count, measure, target,
                          above);
  }
  uint32_t few_keys[kFew];
  uint64_t few_masses[kFew];
  int size = 0;
  const Floats low = splat(keys.low_logit());
  const Floats high = splat(keys.high_logit());
  for (int i = 0; i < list.size; i += kLanes) {
    const Floats logits = load(list.logits + i);
    uint32_t chosen = bits_of(at_least(logits, low) & at_least(high, logits));
    for (; chosen != 0; chosen &= chosen - 1) {
      const int place = i + __builtin_ctz(chosen);
      few_keys[size] = order_key(list.logits[place]);
      few_masses[size] = list.masses[place];
      ++size;
    }
  }
  return end_among_few(few_keys, few_masses, size, measure, target, above);
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
