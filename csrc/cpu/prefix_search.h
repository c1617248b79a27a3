// Where a prefix of a row's order ends: the search behind top_k and top_p.
//
// The search narrows an interval of keys in which the last token of the prefix lies:
//   1. tokens near the maximum are listed: rows of language models end here;
//   2. a sample of the row guesses a narrower interval, one read lists it and weighs what is above;
//   3. where that fails, histograms of keys narrow the interval for certain.
// Attempts of the first two kinds are counted, so that no row is read more than 8.4 times.
#pragma once

#include "near_maximum.h"

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

  // What is_kept of last_kept.h says, without its branches: a loop over a list would mispredict
  // them.
  bool contains(float logit, int column) const {
    const uint32_t token_key = order_key(logit);
    return (token_key > key) | ((token_key == key) & (column <= last_tie));
  }
};

// What the search for one row works with, on the stack of the calling thread. The masses of blocks
// in the summary become those of their kept tokens.
struct Search {
  RowSummary summary;
  CandidateList list;
  Sample sample;
  Histogram coarse;  // of the first prefix that needed one
  Histogram fine;
};

// The shortest prefix whose count or mass reaches the target.
struct Prefix {
  Measure measure;
  uint64_t target;
  uint32_t near;    // where to look first: above it there are probably few tokens
  uint32_t lowest;  // above it lies all that is kept, but for rounding
  uint32_t floor;   // the prefix does not end below, or what lies there is dropped afterwards
  bool last;        // no prefix of this one is looked for afterwards
};

// Place of the n-th logit that equals this one, of at least n.
template <typename Element>
int place_of_tie(const Element* logits, float logit, uint64_t n) {
  for (int i = 0;; i += kLanes) {
    uint32_t ties = bits_of(equal(load(logits + i), splat(logit)));
    const uint64_t count = static_cast<uint64_t>(__builtin_popcount(ties));
    if (count < n) {
      n -= count;
      continue;
    }
    for (; n > 1; --n) ties &= ties - 1;
    return i + __builtin_ctz(ties);
  }
}

// The kept set, and how it shrinks.
template <typename Element>
class PrefixSearch {
 public:
  PrefixSearch(const Row<Element>& row, const Scaling& scaling, Search& search)
      : row_(row), scaling_(scaling), search_(search) {
    kept_.row_mass = search.summary.mass;
  }

  const KeptSet& kept() const { return kept_; }
  uint32_t max_key() const { return order_key(search_.summary.max); }

  void keep_first_token() {
    kept_.key = max_key();
    kept_.last_tie = search_.summary.argmax;
    kept_.count = 1;
    kept_.mass = fixed_mass(1.0f);
  }

  // Everything that is finite. The count is known only to lie below the number of columns.
  void keep_all(uint32_t lowest_key) {
    kept_.key = lowest_key;
    kept_.last_tie = row_.vocab();
    kept_.count = row_.vocab();
    count_with_ties_ = static_cast<uint64_t>(row_.vocab());
    kept_.mass = kept_.row_mass;
    kept_.all = true;
  }

  void keep_prefix(const Prefix& prefix) {
    if (kept_.listed) {
      keep_listed(prefix);
    } else if (histogrammed_) {
      narrow_down(prefix, {});
    } else {
      look_for(prefix);
    }
  }

  // Tokens with at least this key.
  void keep_from(uint32_t key) {
    if (key <= kept_.key) return;
    kept_.key = key;
    kept_.last_tie = row_.vocab();
    kept_.all = false;
    if (!kept_.listed && key < max_key()) {
      measure({key, max_key()}, WhenFull::kStop);
      kept_.listed = search_.list.complete;
    }
    if (kept_.listed) {
      shorten_list();
      kept_.count = search_.list.size;
      kept_.mass = search_.list.mass();
      return;
    }
    const Measured measured = measure({key, key});
    add_ties(key, measured.inside.count, measured.inside.count);
    kept_.count = static_cast<int64_t>(measured.above.count + measured.inside.count);
    kept_.mass = measured.above.mass + measured.inside.mass;
  }

 private:
  // With the summary, three histograms and the read of what they leave, so many attempts make eight
  // reads; samples and what stops early add less than a half.
  static constexpr int kAttempts = 3;

  Measured measure(Interval keys, WhenFull when_full = WhenFull::kGoOn) {
    return measure_interval(row_, scaling_, keys, when_full, search_.summary, search_.list);
  }

  uint64_t mass_of(uint32_t key) const {
    return scaling_.mass(logit_of_key(key), search_.summary.max);
  }

  // Tries what probably succeeds, and falls back on what does for certain. Before a prefix of a
  // prefix the first one is tried for once, because both may fall back.
  void look_for(const Prefix& prefix) {
    const int attempts_left = prefix.last ? 0 : attempts_ - 1;
    Bounds bounds = {
        {prefix.lowest, max_key()}, {}, {count_with_ties_, kept_.mass}, kept_.key, !kept_.all};
    const uint32_t near = prefix.near < prefix.floor ? prefix.floor : prefix.near;
    if (near > kept_.key && !fits(bounds) && worth_listing(near, prefix)) {
      // Where this is too much for the list, nothing is lost by not knowing how much.
      if (ends_in({near, max_key()}, WhenFull::kStop, prefix, bounds)) return;
      // One that stops early is no read to speak of. Of one key nothing is listed: it may read all.
      const bool listed_early = near != max_key() && !search_.list.complete;
      if (!listed_early || search_.list.blocks > row_.num_blocks() / 8) --attempts_;
    }
    while (attempts_ > attempts_left && !fits(bounds)) {
      --attempts_;
      search_.sample.take(row_, scaling_, bounds, search_.summary.max,
                          Sample::shift_of(search_.summary, attempts_));
      // A guess that fails costs a read and tells where to guess next, a wide one costs a longer
      // list.
      const double deviations = attempts_ > attempts_left ? 2.0 : 2.5;
      Interval guess = search_.sample.guess(bounds, prefix.measure, prefix.target, deviations);
      if (guess.low == bounds.keys.low && guess.high == bounds.keys.high) continue;  // no guess
      if (guess.low < prefix.floor) guess.low = prefix.floor;
      if (guess.high < prefix.floor) guess.high = prefix.floor;
      if (ends_in(guess, WhenFull::kGoOn, prefix, bounds)) return;
    }
    narrow_down(prefix, bounds);
  }

  // Whether to list the tokens from this key on before any guess.
  bool worth_listing(uint32_t key, const Prefix& prefix) const {
    // Where the prefix ends above this key for certain, listing costs little: a count does, and
    // what lies below the floor is dropped. After top_k a guess has fewer attempts. One key is
    // counted.
    if (prefix.measure == Measure::kCount || key == prefix.floor || !kept_.all ||
        key == max_key()) {
      return true;
    }
    return probably_near(row_, scaling_, search_.summary, logit_of_key(key),
                         kept_.mass - prefix.target, Sample::shift_of(search_.summary, attempts_));
  }

  static uint64_t count_inside(const Bounds& bounds) {
    return bounds.upto.count - bounds.above.count;
  }

  // Whether the list has room for all tokens within the bounds.
  static bool fits(const Bounds& bounds) { return count_inside(bounds) <= CandidateList::kRoom; }

  // Whether the prefix ends in the guessed interval and is now known; if not, the bounds are
  // closer.
  bool ends_in(Interval guess, WhenFull when_full, const Prefix& prefix, Bounds& bounds) {
    const Measured measured = measure(guess, when_full);
    if (!search_.list.complete && guess.low != guess.high && when_full == WhenFull::kStop) {
      return false;
    }
    // Where both ends agree with the bounds there is no other place; what misses is rounding, and
    // so is 2^-21 of a mass.
    if (measured.above.of(prefix.measure) >= prefix.target && guess.high < bounds.keys.high) {
      bounds.keys.low = guess.high + 1;
      bounds.upto = measured.above;
      bounds.reached = bounds.keys.low;
      bounds.counted = true;
      return false;
    }
    Amount upto = measured.above;
    upto.add(measured.inside);
    const uint64_t slack = prefix.measure == Measure::kMass ? prefix.target >> 21 : 0;
    if (upto.of(prefix.measure) < prefix.target - slack && guess.low > prefix.floor &&
        guess.low > bounds.keys.low) {
      bounds.keys.high = guess.low - 1;
      bounds.above = upto;
      return false;
    }
    if (search_.list.complete || guess.low == guess.high) {
      end_prefix(measured, guess, prefix);
      return true;
    }
    bounds = {guess, measured.above, upto, guess.low, true};
    return false;
  }

  // Histograms narrow the bounds until the list has room for what is left, or that is one key.
  void narrow_down(const Prefix& prefix, Bounds bounds) {
    uint64_t inside = count_inside(bounds);
    if (histogrammed_) {
      inside = search_.coarse
                   .find(prefix.measure, prefix.target, prefix.floor, bounds.above, bounds.keys)
                   .count;
    }
    if (bounds.keys.low < prefix.floor) bounds.keys.low = prefix.floor;
    while (inside > CandidateList::kRoom && bounds.keys.low != bounds.keys.high) {
      if (!histogrammed_ && !prefix.last) {
        // A prefix of this one may end anywhere above.
        bounds.keys.high = max_key();
        bounds.above = {};
      }
      inside = narrow(bounds, prefix, histogrammed_ ? search_.fine : search_.coarse);
      histogrammed_ = true;
    }
    if (!histogrammed_) --attempts_;  // this read is one that a prefix of this one must do without
    const uint32_t key = bounds.keys.low;
    if (!prefix.last && key == bounds.keys.high && histogrammed_) {
      // Blocks need not be weighed where the prefix of this one is still to be found.
      set_end(
          end_among_ties(key, inside, mass_of(key), prefix.measure, prefix.target, bounds.above));
    } else {
      end_prefix(measure(bounds.keys), bounds.keys, prefix);
    }
  }

  // One histogram of the bounds, which move to the bin that the prefix ends in; returns how many
  // tokens it holds.
  uint64_t narrow(Bounds& bounds, const Prefix& prefix, Histogram& histogram) {
    CandidateList& list = search_.list;
    histogram.start(bounds.keys, Histogram::kBins);
    const float low = bounds.keys.low_logit();
    const float high = bounds.keys.high_logit();
    for (int number = 0; number < row_.num_blocks(); ++number) {
      if (search_.summary.block_max[number] < low) continue;
      const Block<Element> block = row_.block(number);
      list.clear();
      for (int i = 0; i < block.padded; i += kLanes) {
        const Floats logits = load(block.data + i);
        const Mask inside = at_least(logits, splat(low)) & at_least(splat(high), logits);
        list.size = list.write(list.size, logits, inside, block.begin + i);
      }
      list.weigh(scaling_, search_.summary.max);
      histogram.add(list);
    }
    const uint32_t lowest = bounds.keys.low;
    return histogram.find(prefix.measure, prefix.target, lowest, bounds.above, bounds.keys).count;
  }

  void keep_listed(const Prefix& prefix) {
    Measured measured;
    measured.inside.count = static_cast<uint64_t>(search_.list.size);
    end_prefix(measured, {}, prefix);
  }

  // Describes the kept set once it is known that it ends in these keys.
  void end_prefix(const Measured& measured, Interval keys, const Prefix& prefix) {
    CandidateList& list = search_.list;
    const Amount& above = measured.above;
    PrefixEnd end = {keys.high + 1, 0, 0, above};  // right where there are no tokens inside
    if (measured.inside.count == 0) {
      list.complete = true;
    } else if (list.complete) {
      end = select_in_list(list, prefix.measure, prefix.target, above, search_.fine);
    } else {
      end = end_among_ties(keys.low, measured.inside.count, mass_of(keys.low), prefix.measure,
                           prefix.target, above);
    }
    end = set_end(end);
    kept_.listed = list.complete && above.count == 0;
    if (!list.complete) {
      add_ties(end.key, end.ties, end.kept_ties);
      return;
    }
    if (end.kept_ties > 0) {
      const int place = place_of_tie(list.logits, logit_of_key(end.key), end.kept_ties);
      kept_.last_tie = list.columns[place];
    }
    if (kept_.listed) {
      shorten_list();
    } else {
      add_listed();
    }
  }

  PrefixEnd set_end(PrefixEnd end) {
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
    count_with_ties_ = end.amount.count + end.ties - end.kept_ties;
    kept_.mass = end.amount.mass;
    kept_.last_tie = row_.vocab();
    kept_.all = false;
    return end;
  }

  // Drops what is not kept from the list.
  void shorten_list() {
    search_.list.shorten([&](float logit, int column) { return kept_.contains(logit, column); });
  }

  // Adds the masses of the kept tokens of the list to those of their blocks.
  void add_listed() {
    CandidateList& list = search_.list;
    // Before the blocks, which have a few tokens each: all at once they are done in vectors.
    const Floats cut = splat(logit_of_key(kept_.key));
    for (int i = 0; i < list.size; i += kLanes) {
      const Floats logits = load(list.logits + i);
      Ints columns;
      Words masses;
      std::memcpy(&columns, list.columns + i, sizeof(columns));
      std::memcpy(&masses, list.masses + i, sizeof(masses));
      const Ints keep = (logits > cut) | ((logits == cut) & (columns <= kept_.last_tie));
      masses &= __builtin_convertvector(keep, Words);  // from all bits of a lane, all bits
      std::memcpy(list.masses + i, &masses, sizeof(masses));
    }
    int i = 0;
    for (int number = 0; number < row_.num_blocks(); ++number) {
      uint64_t mass = 0;
      for (const int end = i + list.block_count[number]; i < end; ++i) mass += list.masses[i];
      search_.summary.block_mass[number] += mass;
    }
  }

  // Adds the first `kept` of the counted tokens with this key to the masses of their blocks.
  void add_ties(uint32_t key, uint64_t ties, uint64_t kept) {
    const uint64_t mass = mass_of(key);
    uint64_t left = kept;
    for (int number = 0; left > 0; ++number) {
      const uint64_t found = static_cast<uint64_t>(search_.list.block_count[number]);
      if (found >= left && kept < ties) kept_.last_tie = column_of_tie(number, key, left);
      const uint64_t added = found < left ? found : left;
      search_.summary.block_mass[number] += added * mass;
      left -= added;
    }
  }

  // Column of the n-th token of a block with this key.
  int column_of_tie(int number, uint32_t key, uint64_t n) const {
    const Block<Element> block = row_.block(number);
    return block.begin + place_of_tie(block.data, logit_of_key(key), n);
  }

  const Row<Element>& row_;
  const Scaling& scaling_;
  Search& search_;
  KeptSet kept_;
  uint64_t count_with_ties_ = 0;  // of all tokens with the last key or a higher one
  int attempts_ = kAttempts;
  bool histogrammed_ = false;  // the coarse histogram holds all that is kept
};

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
