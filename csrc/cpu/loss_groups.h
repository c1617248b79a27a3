// Tokens of a row grouped by weight, and the token at which their mass passes P.
#pragma once

#include "loss_sums.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// The tokens of low <= l < high, in slots of equal width from `top` down.
struct Band {
  float low;
  float high;
  float top;  // difference from the maximum
  float unit = 1.0f;
  float slots_per_unit;  // finite also where all tokens differ by less than the smallest normal
  int slots;

  Band(const LossScale& scale, float max, float lowest, float above_highest, int num_slots)
      : low(lowest), high(above_highest), slots(num_slots) {
    top = scale.difference(splat(high < max ? high : max), max)[0];
    const float width = top - scale.difference(splat(low), max)[0];
    if (width < 0x1p-100f) unit = 0x1p64f;
    slots_per_unit = width > 0.0f ? static_cast<float>(slots) / (width * unit) : 0.0f;
  }

  bool empty() const { return !(low < high); }

  Mask contains(Floats logits) const {
    return at_least(logits, splat(low)) & greater(splat(high), logits);
  }
  // Beyond the last slot where a logit is not inside.
  Ints slot(Floats logits, Floats differences) const {
    const Floats last = splat(static_cast<float>(slots - 1));
    // A NaN is 0 here: of a band without width, below which a difference times `unit` overflows.
    const Floats number = larger((top - differences) * unit * slots_per_unit, splat(0.0f));
    const Floats inside = -larger(-last, -number);
    const Floats beyond = splat(static_cast<float>(slots));
    return __builtin_convertvector(choose(contains(logits), inside, beyond), Ints);
  }
  int slot_of(float logit, const LossScale& scale, float max) const {
    return slot(splat(logit), scale.difference(splat(logit), max))[0];
  }
  // The same slots, the last of them with all tokens that are lower.
  Band open_below() const {
    Band open = *this;
    open.low = -kLargestFloat;
    return open;
  }
  // The difference from the maximum at which a slot begins, where tokens differ.
  double slot_top(int number) const {
    return static_cast<double>(top) -
           number / (static_cast<double>(unit) * static_cast<double>(slots_per_unit));
  }
  Mask slot_is(int number, Floats logits, Floats differences) const {
    const Floats slots_of = __builtin_convertvector(slot(logits, differences), Floats);
    return equal(slots_of, splat(static_cast<float>(number)));
  }
};

// Calls function(logits) with all logits of a list, or of the row where that is not complete: of
// its blocks that reach `lowest`.
template <typename Element, typename Function>
void for_logits(const Row<Element>& row, const LossSums& sums, const LogitList& list, float lowest,
                Function&& function) {
  if (list.complete) {
    for (int i = 0; i < list.size; i += kLanes) function(load(list.logits + i));
    return;
  }
  for (int number = 0; number < row.num_blocks(); ++number) {
    if (sums.block_max[number] < lowest) continue;
    const Block<Element> block = row.block(number);
    for (int i = 0; i < block.padded; i += kLanes) function(load(block.data + i));
  }
}

// Mass, and mass times difference, of the tokens in each slot of a band.
class Slots {
 public:
  static constexpr int kMax = 256;

  Slots() = default;  // to be cleared
  explicit Slots(int number) { clear(number); }

  void clear(int number) {
    for (Cell* copy : cells_) {
      for (int slot = 0; slot <= number; ++slot) copy[slot] = Cell{};
    }
  }

  void add(const Band& band, const LossScale& scale, float max, Floats logits) {
    const Floats differences = scale.difference(logits, max);
    const Floats weights = scale.weights(differences);
    const Ints numbers = band.slot(logits, differences);
    interleave(weights, weights * differences, pairs_ + staged_);
    std::memcpy(numbers_ + staged_, &numbers, sizeof(numbers));
    staged_ += kLanes;
    if (staged_ == kStage) flush();
  }

  // Before the sums are read.
  void flush() {
    for (int i = 0; i < staged_; i += kCopies) {
      for (int copy = 0; copy < kCopies; ++copy) {
        Pair pair;
        std::memcpy(&pair, pairs_[i + copy], sizeof(pair));
        cells_[copy][numbers_[i + copy]] += __builtin_convertvector(pair, Cell);
      }
    }
    staged_ = 0;
  }

  double mass(int slot) const { return sum(slot, 0); }
  double moment(int slot) const { return sum(slot, 1); }

 private:
  typedef double Cell __attribute__((vector_size(2 * sizeof(double))));
  typedef float Pair __attribute__((vector_size(2 * sizeof(float))));
  // Neighbours are often in one slot, and a sum must be stored before the next one is loaded.
  static constexpr int kCopies = 4;

  double sum(int slot, int part) const {
    double total = 0.0;
    for (const Cell* copy : cells_) total += copy[slot][part];
    return total;
  }

  // Through memory, a part of the row at a time: taking vectors apart is slower.
  static constexpr int kStage = 256;
  static_assert(kStage % kLanes == 0 && kLanes % kCopies == 0);

  int staged_ = 0;
  Cell cells_[kCopies][kMax + 1];
  alignas(64) float pairs_[kStage][2];
  alignas(64) int32_t numbers_[kStage];
};

template <typename Element>
void fill_slots(const Row<Element>& row, const LossScale& scale, const LossSums& sums,
                const LogitList& list, const Band& band, Slots& slots) {
  for_logits(row, sums, list, band.low,
             [&](Floats logits) { slots.add(band, scale, sums.max, logits); });
  slots.flush();
}

constexpr int kFewLogits = 32;

// Descending, for kFewLogits at most.
template <int kSize>
void sort_few_descending(LogitsOf<kSize>& list) {
  for (int i = 1; i < list.size; ++i) {
    const float logit = list.logits[i];
    int slot = i;
    for (; slot > 0 && list.logits[slot - 1] < logit; --slot) {
      list.logits[slot] = list.logits[slot - 1];
    }
    list.logits[slot] = logit;
  }
}

// Descending, by least significant digits of the order key. Not inlined: few logits need no keys on
// the stack.
template <int kSize>
[[gnu::noinline]] void sort_by_digits(LogitsOf<kSize>& list) {
  uint32_t keys[2][kSize];
  int counts[4][256] = {};
  for (int i = 0; i < list.size; ++i) {
    const uint32_t key = ~order_key(list.logits[i]);
    keys[0][i] = key;
    for (int digit = 0; digit < 4; ++digit) ++counts[digit][key >> (8 * digit) & 255];
  }
  int from = 0;
  for (int digit = 0; digit < 4; ++digit) {
    if (counts[digit][keys[from][0] >> (8 * digit) & 255] == list.size) continue;
    int place = 0;
    for (int& count : counts[digit]) {
      const int begin = place;
      place += count;
      count = begin;
    }
    for (int i = 0; i < list.size; ++i) {
      const uint32_t key = keys[from][i];
      keys[1 - from][counts[digit][key >> (8 * digit) & 255]++] = key;
    }
    from = 1 - from;
  }
  for (int i = 0; i < list.size; ++i) list.logits[i] = logit_of_key(~keys[from][i]);
}

template <int kSize>
void sort_descending(LogitsOf<kSize>& list) {
  if (list.size <= kFewLogits) {
    sort_few_descending(list);
  } else {
    sort_by_digits(list);
  }
}

// In units of weight.
struct Crossing {
  double prefix = 0.0;  // of as many tokens in rank order as `room` takes
  double moment = 0.0;  // of the same, weight times difference
  double next = 0.0;    // weight of the token after them
  float next_logit = kNaN;
  int64_t equals = 0;  // of them, as large as that token; kUnknown: logits differ, weights do not

  static constexpr int64_t kUnknown = -1;

  void take(double mass, double times_difference) {
    prefix += mass;
    moment += times_difference;
  }
};

// Where the tokens in one slot of a band fill `room`. Uses up the list, which holds them or is not
// complete. The slot is divided until what is left fits the list, then until few tokens are left,
// which are exact. Each division leaves about one part in 256 of a width between 2^-149 and 2^128,
// so that kMostDivisions end it whatever rounding does; tokens left then count as equal.
template <typename Element>
Crossing find_crossing(const Row<Element>& row, const LossScale& scale, const LossSums& sums,
                       Band band, int number, double room, LogitList& list) {
  constexpr int kMostDivisions = 40;
  const float max = sums.max;
  const auto weight = [&](float logit) { return exponential(-scale.distance(logit, max)); };
  const auto difference = [&](float logit) {
    return static_cast<double>(scale.difference(splat(logit), max)[0]);
  };
  Crossing crossing;
  for (int divisions = 0;; ++divisions) {
    int64_t count = 0;
    Floats lowest = splat(kInfinity);
    Floats highest = splat(-kInfinity);
    const auto keep = [&](Floats logits) {
      const Mask inside = band.slot_is(number, logits, scale.difference(logits, max));
      count += __builtin_popcount(bits_of(inside));
      lowest = choose(inside & greater(lowest, logits), logits, lowest);
      highest = choose(inside, larger(highest, logits), highest);
      return inside;
    };
    if (list.complete) {
      list.shorten(keep);
    } else {
      list.size = 0;
      for_logits(row, sums, list, band.low, [&](Floats logits) {
        const Mask inside = keep(logits);
        if (list.size <= LogitList::kRoom) list.append(logits, inside);
      });
      list.complete = list.size == count;
      list.pad();
    }
    const float low = -largest_lane(-lowest);
    const float high = largest_lane(highest);
    if (count == 0) return crossing;
    if (difference(low) == difference(high) || divisions == kMostDivisions) {
      const double equal_weight = weight(high);
      const double places = (room - crossing.prefix) / equal_weight * (1.0 + 1e-12);
      const int64_t head =
          places < static_cast<double>(count) ? static_cast<int64_t>(places) : count;
      const double taken = static_cast<double>(head);
      crossing.take(taken * equal_weight, taken * equal_weight * difference(high));
      crossing.next = equal_weight;
      crossing.next_logit = high;
      crossing.equals = low == high ? head : Crossing::kUnknown;
      return crossing;
    }
    if (list.complete && list.size <= kFewLogits) {
      sort_few_descending(list);
      for (int i = 0; i < list.size; ++i) {
        crossing.equals = i > 0 && list.logits[i] == crossing.next_logit ? crossing.equals + 1 : 0;
        crossing.next_logit = list.logits[i];
        crossing.next = weight(list.logits[i]);
        if (crossing.prefix + crossing.next > room) return crossing;
        crossing.take(crossing.next, crossing.next * difference(list.logits[i]));
      }
      ++crossing.equals;  // the last one too
      return crossing;
    }
    band = Band(scale, max, low, float_above(high), Slots::kMax);
    Slots slots(band.slots);
    fill_slots(row, scale, sums, list, band, slots);
    for (number = 0; number < band.slots - 1; ++number) {
      const double mass = slots.mass(number);
      if (crossing.prefix + mass > room) break;
      crossing.take(mass, slots.moment(number));
    }
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
