// The kept set of a row, found without sorting.
//
// Every filter keeps a prefix of the total order (logit descending, index ascending), so the kept
// set is described by the key of its last token and, among tokens equal to it, the last index. The
// search narrows an interval of keys in which that last token lies:
//   1. tokens near the maximum are listed: rows of language models end here;
//   2. a sample of the row guesses a narrower interval, one pass lists it and weighs what is above;
//   3. where a guess fails or the list is full, histograms of keys narrow the interval for certain.
#pragma once

#include <cmath>

#include "autodeco/filters.h"
#include "sampled_interval.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

struct KeptSet {
  uint32_t key = 0;   // of the last kept token
  int last_tie = -1;  // tokens with this key are kept up to this index
  int64_t count = 0;
  uint64_t mass = 0;
  uint64_t row_mass = 0;  // of all columns, before any filter
  bool all = false;       // every finite token; `count` is then an upper bound
  // Where the kept tokens are: in the list, or summed up per block in the summary.
  bool listed = false;

  bool contains(float logit, int column) const {
    const uint32_t token_key = order_key(logit);
    return (token_key > key) | ((token_key == key) & (column <= last_tie));
  }
};

// What the search for one row works with; 325 KB, on the stack of the calling thread. The masses of
// blocks in the summary become those of their kept tokens.
struct Search {
  RowSummary summary;
  CandidateList list;
  Sample sample;
  Histogram histogram;
};

constexpr uint32_t kLowestFiniteKey = 0x00800000u;  // of -FLT_MAX
static_assert(logit_of_key(kLowestFiniteKey) == -kLargestFloat);

template <typename Element>
class KeptSetFinder {
 public:
  KeptSetFinder(const Row<Element>& row, const Scaling& scaling, Search& search)
      : row_(row), scaling_(scaling), search_(search) {
    kept_.row_mass = search.summary.mass;
  }

  // The tokens that top_k, top_p and min_p leave, in that order.
  KeptSet find(const FilterParameters& filters, int64_t row_index) {
    const float temperature = value_at(filters.temperature, row_index);
    const float top_p = value_at(filters.top_p, row_index);
    const float min_p = value_at(filters.min_p, row_index);
    const int64_t top_k = value_at(filters.top_k, row_index);
    if (temperature == 0.0f || top_p <= 0.0f || min_p > 1.0f || top_k == 1) return first_token();
    keep_all();
    if (top_k > 0 && top_k < row_.vocab()) keep_first(static_cast<uint64_t>(top_k));
    if (top_p < 1.0f) keep_mass(top_p);
    if (min_p > 0.0f) keep_probable(temperature, min_p);
    return kept_;
  }

 private:
  uint32_t max_key() const { return order_key(search_.summary.max); }

  KeptSet first_token() {
    kept_.key = max_key();
    kept_.last_tie = search_.summary.argmax;
    kept_.count = 1;
    kept_.mass = fixed_mass(1.0f);
    return kept_;
  }

  // Everything that is finite. The count is known only to lie below the number of columns.
  void keep_all() {
    kept_.key = kLowestFiniteKey;
    kept_.last_tie = row_.vocab();
    kept_.count = row_.vocab();
    kept_.mass = kept_.row_mass;
    kept_.all = true;
  }

  void keep_first(uint64_t top_k) {
    uint32_t near = kLowestFiniteKey;
    if (top_k <= static_cast<uint64_t>(row_.num_blocks())) near = key_of_block_max(top_k);
    keep_prefix(Measure::kCount, top_k, near, kLowestFiniteKey);
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
    return select_in_list(list, Measure::kCount, k, {}, search_.histogram).key;
  }

  void keep_mass(float top_p) {
    const double wanted = std::ceil(static_cast<double>(top_p) * static_cast<double>(kept_.mass));
    uint64_t target = kept_.mass;
    if (wanted < static_cast<double>(kept_.mass)) target = static_cast<uint64_t>(wanted);
    if (target == 0) target = 1;
    if (kept_.listed) {
      keep_listed(Measure::kMass, target);
      return;
    }
    // Tokens of at most (1 - P) / V of the mass are too few to matter; half of that is safe from
    // rounding where 1 - P is not itself of its size.
    const double left_out = (1.0 - static_cast<double>(top_p)) * static_cast<double>(kept_.mass);
    uint32_t lowest = kept_.key;
    if (top_p < 1.0f - 1e-5f) lowest = key_of_mass(left_out / (2.0 * row_.vocab()));
    // A token of a language model that is 1000 times less probable than what is left out is rarely
    // needed; those above it are few.
    const uint32_t near = key_of_mass(left_out / 1024.0);
    keep_prefix(Measure::kMass, target, near > kept_.key ? near : kept_.key,
                lowest > kept_.key ? lowest : kept_.key);
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
    if (logit >= static_cast<double>(search_.summary.max)) return max_key();
    return order_key(static_cast<float>(logit));
  }

  // Drops tokens with a probability below min_p times the largest: l < max + T ln(min_p).
  void keep_probable(float temperature, float min_p) {
    const double cut = static_cast<double>(search_.summary.max) +
                       static_cast<double>(temperature) * std::log(static_cast<double>(min_p));
    if (cut <= static_cast<double>(logit_of_key(kept_.key))) return;
    float lowest = static_cast<float>(cut);  // then the smallest float >= cut
    if (static_cast<double>(lowest) < cut) lowest = logit_of_key(order_key(lowest) + 1);
    const uint32_t key = order_key(lowest);
    if (key <= kept_.key) return;
    kept_.key = key;
    kept_.last_tie = row_.vocab();
    kept_.all = false;
    if (!kept_.listed) {
      measure({key, max_key()}, WhenFull::kStop);
      kept_.listed = search_.list.complete;
    }
    if (kept_.listed) {
      shorten_list();
      kept_.count = search_.list.size;
      kept_.mass = search_.list.mass();
      return;
    }
    // All tokens with exactly this key, if any, and everything above.
    const Measured measured = measure({key, key});
    const uint64_t ties = measured.inside.count;
    PrefixEnd end = {key, ties, ties, measured.above};
    end.amount.add({ties, ties * mass_of(key)});
    add_ties(end);
    kept_.count = static_cast<int64_t>(end.amount.count);
    kept_.mass = end.amount.mass;
  }

  // The first tokens of the list whose count or mass reaches the target.
  void keep_listed(Measure measure, uint64_t target) {
    Measured measured;
    measured.inside.count = static_cast<uint64_t>(search_.list.size);
    end_prefix(measured, {}, measure, target);
  }

  int listed_tie(const PrefixEnd& end) const {
    uint64_t left = end.kept_ties;
    for (int i = 0;; ++i) {
      if (order_key(search_.list.logits[i]) == end.key && --left == 0) {
        return search_.list.columns[i];
      }
    }
  }

  // Drops what is not kept from the list.
  void shorten_list() {
    search_.list.shorten([&](float logit, int column) { return kept_.contains(logit, column); });
  }

  // The shortest prefix that reaches the target, which everything from `lowest` upwards does but
  // for rounding. The first guess is what lies above `near`.
  void keep_prefix(Measure measure_of, uint64_t target, uint32_t near, uint32_t lowest) {
    constexpr int kSampledGuesses = 3;
    // A row that fits the list is listed whole.
    if (row_.vocab() <= CandidateList::kRoom || near < lowest) near = lowest;
    Bounds bounds = {{lowest, max_key()}, {}, {static_cast<uint64_t>(kept_.count), kept_.mass}};
    // Where this is too much for the list, nothing is lost by not knowing how much.
    if (ends_in({near, max_key()}, WhenFull::kStop, measure_of, target, bounds)) return;
    for (int i = 0; i < kSampledGuesses; ++i) {
      search_.sample.take(row_, scaling_, search_.summary.max, bounds.keys);
      const Interval guess = search_.sample.guess(bounds, measure_of, target);
      const bool no_guess = guess.low == bounds.keys.low && guess.high == bounds.keys.high;
      if (ends_in(guess, WhenFull::kGoOn, measure_of, target, bounds)) return;
      if (no_guess) break;
    }
    uint64_t count;
    do {
      count = narrow(bounds, measure_of, target);
    } while (count > CandidateList::kRoom && bounds.keys.low != bounds.keys.high);
    end_prefix(measure(bounds.keys), bounds.keys, measure_of, target);
  }

  Measured measure(Interval keys, WhenFull when_full = WhenFull::kGoOn) {
    return measure_interval(row_, scaling_, keys, when_full, search_.summary, search_.list);
  }

  // Whether the prefix ends in the guessed interval and is now known; if not, the bounds are
  // closer.
  bool ends_in(Interval guess, WhenFull when_full, Measure measure_of, uint64_t target,
               Bounds& bounds) {
    const Measured measured = measure(guess, when_full);
    if (!search_.list.complete && guess.low != guess.high && when_full == WhenFull::kStop) {
      return false;
    }
    // Where both ends agree with the bounds there is no other place; what misses is rounding, and
    // so is 2^-21 of a mass.
    if (measured.above.of(measure_of) >= target && guess.high < bounds.keys.high) {
      bounds.keys.low = guess.high + 1;
      bounds.upto = measured.above;
      return false;
    }
    Amount upto = measured.above;
    upto.add(measured.inside);
    const uint64_t slack = measure_of == Measure::kMass ? target >> 21 : 0;
    if (upto.of(measure_of) < target - slack && guess.low > bounds.keys.low) {
      bounds.keys.high = guess.low - 1;
      bounds.above = upto;
      return false;
    }
    if (search_.list.complete || guess.low == guess.high) {
      end_prefix(measured, guess, measure_of, target);
      return true;
    }
    bounds = {guess, measured.above, upto};
    return false;
  }

  uint64_t mass_of(uint32_t key) const {
    return scaling_.mass(logit_of_key(key), search_.summary.max);
  }

  // Histograms the bounds and moves them to the bin the prefix ends in; returns its tokens.
  uint64_t narrow(Bounds& bounds, Measure measure_of, uint64_t target) {
    Histogram& histogram = search_.histogram;
    CandidateList& list = search_.list;
    histogram.start(bounds.keys, Histogram::kBins);
    const float low = logit_of_key(bounds.keys.low);
    const float high = logit_of_key(bounds.keys.high);
    for (int number = 0; number < row_.num_blocks(); ++number) {
      if (search_.summary.block_max[number] < low) continue;
      const Block<Element> block = row_.block(number);
      list.clear();
      for (int i = 0; i < block.padded; i += kLanes) {
        const Floats logits = load(block.data + i);
        const uint32_t inside =
            bits_of(at_least(logits, splat(low)) & at_least(splat(high), logits));
        if (inside != 0) list.append(logits, inside, block.begin + i);
      }
      list.weigh(scaling_, search_.summary.max);
      histogram.add(list);
    }
    return histogram.find(measure_of, target, bounds.above, bounds.keys).count;
  }

  // Describes the kept set once it is known that it ends in these keys.
  void end_prefix(const Measured& measured, Interval keys, Measure measure_of, uint64_t target) {
    CandidateList& list = search_.list;
    const Amount& above = measured.above;
    PrefixEnd end = {keys.high + 1, 0, 0, above};  // right where there are no tokens inside
    if (measured.inside.count == 0) {
      list.complete = true;
    } else if (list.complete) {
      end = select_in_list(list, measure_of, target, above, search_.histogram);
    } else {
      end = end_among_ties(keys.low, measured.inside.count, mass_of(keys.low), measure_of, target,
                           above);
    }
    // The masses behind this end were rounded in another way than those that an earlier filter
    // ended by, so that the last of its ties could be exceeded.
    if (end.amount.count > static_cast<uint64_t>(kept_.count)) {
      const uint64_t excess = end.amount.count - static_cast<uint64_t>(kept_.count);
      end.kept_ties -= excess;
      end.amount.count -= excess;
      end.amount.mass -= excess * mass_of(end.key);
    }
    kept_.key = end.key;
    kept_.count = static_cast<int64_t>(end.amount.count);
    kept_.mass = end.amount.mass;
    kept_.last_tie = row_.vocab();
    kept_.all = false;
    kept_.listed = list.complete && above.count == 0;
    if (!list.complete) {
      add_ties(end);
      return;
    }
    if (end.kept_ties > 0) kept_.last_tie = listed_tie(end);
    if (kept_.listed) {
      shorten_list();
    } else {
      add_listed();
    }
  }

  // Adds the masses of the kept tokens of the list to those of their blocks.
  void add_listed() {
    const CandidateList& list = search_.list;
    int number = 0;
    uint64_t mass = 0;
    for (int i = 0; i < list.size; ++i) {
      if (list.columns[i] / kBlock != number) {
        search_.summary.block_mass[number] += mass;
        number = list.columns[i] / kBlock;
        mass = 0;
      }
      mass += kept_.contains(list.logits[i], list.columns[i]) ? list.masses[i] : 0;
    }
    search_.summary.block_mass[number] += mass;
  }

  // Adds the kept ties to the masses of their blocks, and finds the last of them.
  void add_ties(const PrefixEnd& end) {
    const float logit = logit_of_key(end.key);
    const uint64_t mass = mass_of(end.key);
    uint64_t left = end.kept_ties;
    for (int number = 0; number < row_.num_blocks() && left > 0; ++number) {
      if (search_.summary.block_max[number] < logit) continue;
      const Block<Element> block = row_.block(number);
      uint64_t found = 0;
      for (int i = 0; i < block.padded && found < left; i += kLanes) {
        uint32_t ties = bits_of(equal(load(block.data + i), splat(logit)));
        const uint64_t count = static_cast<uint64_t>(__builtin_popcount(ties));
        if (found + count >= left && end.kept_ties < end.ties) {
          for (uint64_t skipped = found; skipped + 1 < left; ++skipped) ties &= ties - 1;
          kept_.last_tie = block.begin + i + __builtin_ctz(ties);
          found = left;
        } else {
          found += count;
        }
      }
      search_.summary.block_mass[number] += found * mass;
      left -= found;
    }
  }

  const Row<Element>& row_;
  const Scaling& scaling_;
  Search& search_;
  KeptSet kept_;
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
