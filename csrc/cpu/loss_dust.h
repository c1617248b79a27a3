// The tokens of a row that are too light to be told apart, and where P falls among them.
#pragma once

#include <cmath>

#include "loss_tokens.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

constexpr int kSampleColumns = 16;
static_assert(kSampleColumns % kLanes == 0);

// Calls function(logits) with some columns of every block, at places that differ from block to
// block.
template <typename Element, typename Function>
void for_sample(const Row<Element>& row, Function&& function) {
  for (int number = 0; number < row.num_blocks(); ++number) {
    const Block<Element> block = row.block(number);
    const int begin = number * 7 % (block.padded / kSampleColumns) * kSampleColumns;
    for (int i = begin; i < begin + kSampleColumns; i += kLanes) function(load(block.data + i));
  }
}

// All tokens that are too light to be listed.
struct Dust {
  static constexpr double kLightest = kLight * 0x1p-14;  // lighter ones share a slot

  float high;  // tokens below it
  Band band;
  Slots slots;
  bool apart = false;  // in the slots

  template <typename Element>
  Dust(const LossRow<Element>& of, float light_logit)
      : high(light_logit < of.sums.max ? light_logit : of.sums.max),
        band(of.scale, of.sums.max,
             of.scale.logit_at(-logarithm(kLightest * of.total()), of.sums.max), high,
             Slots::kMax) {}

  // Reads the row.
  template <typename Element>
  void take_apart(const LossRow<Element>& of) {
    band = band.open_below();
    slots.clear(band.slots);
    for (int number = 0; number < of.row.num_blocks(); ++number) {
      const Block<Element> block = of.row.block(number);
      for (int i = 0; i < block.padded; i += kLanes) {
        slots.add(band, of.scale, of.sums.max, load(block.data + i));
      }
    }
    slots.flush();
    apart = true;
  }
};

// The dust that the sample has, in slots over its actual range.
template <typename Element>
Band sampled_band(const LossRow<Element>& of, const Band& dust, int num_slots) {
  Floats lowest = splat(kInfinity);
  Floats highest = splat(-kInfinity);
  for_sample(of.row, [&](Floats logits) {
    const Mask inside = dust.contains(logits);
    lowest = choose(inside & greater(lowest, logits), logits, lowest);
    highest = choose(inside & greater(logits, highest), logits, highest);
  });
  const float high = largest_lane(highest);
  return Band(of.scale, of.sums.max, -largest_lane(-lowest),
              high > -kInfinity ? float_above(high) : high, num_slots);
}

// The dust in the slots of some columns of every block, all of it tail. False, and nothing is done,
// where those have so much more or less dust than there is that it would show in the tail, or in
// the loss of a label that outweighs the others.
template <typename Element, typename Shares>
bool walk_sampled(const LossRow<Element>& of, const Band& dust, SoftTopPWalk& walk,
                  Shares& shares) {
  constexpr double kMostOff = 0.4;
  constexpr double kMostOffOfOthers = 0.1;
  constexpr int kSampledSlots = 64;
  const Band band = sampled_band(of, dust, kSampledSlots);
  if (band.empty()) return false;
  Slots slots(band.slots);
  for_sample(of.row, [&](Floats logits) { slots.add(band, of.scale, of.sums.max, logits); });
  slots.flush();
  double mass = 0.0;
  double moment = 0.0;
  for (int slot = 0; slot < band.slots; ++slot) {
    mass += slots.mass(slot);
    moment += slots.moment(slot);
  }
  const double remaining = walk.remaining;
  const double share = mass * (kBlock / kSampleColumns) / (remaining * of.total());
  const double off = share > 1.0 ? share - 1.0 : 1.0 - share;
  const double kept = remaining * walk.decay(walk.passed());
  const double others = walk.head + walk.tail + kept;
  if (off > kMostOff || off * kept > kMostOffOfOthers * others) return false;
  // Mass and slope are known: of the sample there is but how they are spread.
  const double mean = -walk.slope / remaining + -moment / mass * of.scale.inverse;
  for (int slot = 0; slot < band.slots; ++slot) {
    const double of_slot = slots.mass(slot);
    if (of_slot == 0.0) continue;
    const double distance = -slots.moment(slot) / of_slot * of.scale.inverse;
    const TokenGroup group = {remaining * of_slot / mass, mean - distance,
                              exponential(-distance) / of.total()};
    const HeadPart part = {0.0, group.lambda};
    shares.dust(group, part, walk.add(group, part), walk);
  }
  return true;
}

// An interval of the dust in which a part of its mass ends, and what lies above it. Where many
// tokens are equal, the interval is too full to be listed, but has few values.
struct DustGuess {
  static constexpr int kMostValues = 4;

  float low;
  float high;
  double mass_below = 0.0;  // in the sample, as the squares
  double squares_below = 0.0;
  int num_values = 0;  // 0: the interval is to be listed
  float values[kMostValues] = {kNaN, kNaN, kNaN, kNaN};

  double mass_above = 0.0;
  double moment_above = 0.0;
  int64_t counts[kMostValues];

  // From some tokens of every block. It depends on the row alone; where the row is not like them,
  // only time is lost.
  template <typename Element>
  DustGuess(const LossRow<Element>& of, const Band& dust, double share)
      : low(dust.low), high(dust.high) {
    bound(of, dust, share);
    Floats mass = {};
    Floats squares = {};
    int64_t inside = 0;
    for_sample(of.row, [&](Floats logits) {
      const Floats weights = of.scale.weights(of.scale.difference(logits, of.sums.max));
      const Mask below = greater(splat(low), logits);
      add_where(below, mass, weights);
      add_where(below, squares, weights * weights);
      inside +=
          __builtin_popcount(bits_of(at_least(logits, splat(low)) & greater(splat(high), logits)));
    });
    mass_below = static_cast<double>(sum_of_lanes(mass));
    squares_below = static_cast<double>(sum_of_lanes(squares));
    if (inside * (kBlock / kSampleColumns) > LogitList::kRoom / 2) find_values(of.row);
  }

  // Reads the row, and lists the interval or counts its values; false if it is too full, or has
  // other values.
  template <typename Element>
  bool measure(const LossRow<Element>& of, float dust_high) {
    return num_values > 0 ? read<true>(of, dust_high) : read<false>(of, dust_high);
  }

 private:
  template <typename Element>
  void bound(const LossRow<Element>& of, const Band& dust, double share) {
    const Band band = sampled_band(of, dust, dust.slots);
    if (band.empty() || float_above(band.low) == band.high) return;
    Slots slots(band.slots);
    for_sample(of.row, [&](Floats logits) { slots.add(band, of.scale, of.sums.max, logits); });
    slots.flush();
    // Three standard deviations of the share of as many tokens, twice as many because their weights
    // differ.
    const double count = 0.5 * kSampleColumns * of.row.num_blocks();
    const double margin = 3.0 * std::sqrt(share * (1.0 - share) / count) + 2.0 / count;
    double total = 0.0;
    for (int slot = 0; slot < band.slots; ++slot) total += slots.mass(slot);
    int first = 0;
    int last = 0;
    double passed = 0.0;
    for (int slot = 0; slot < band.slots; ++slot) {
      if (passed <= (share - margin) * total) first = slot;
      if (passed <= (share + margin) * total) last = slot;
      passed += slots.mass(slot);
    }
    const auto logit_at = [&](int slot) {
      return of.scale.logit_at(-band.slot_top(slot) * of.scale.inverse, of.sums.max);
    };
    if (first > 0) high = logit_at(first);
    if (last < band.slots - 1) low = logit_at(last + 1);
  }

  // The values of the interval that the sample has, if they are few.
  template <typename Element>
  void find_values(const Row<Element>& row) {
    float below = high;
    for (int found = 0; found <= kMostValues; ++found) {
      Floats highest = splat(-kInfinity);
      for_sample(row, [&](Floats logits) {
        highest = choose(greater(splat(below), logits), larger(highest, logits), highest);
      });
      below = largest_lane(highest);
      if (!(below >= low)) {
        num_values = found;
        return;
      }
      if (found < kMostValues) values[found] = below;
    }
  }

  template <bool kCount, typename Element>
  bool read(const LossRow<Element>& of, float dust_high) {
    // In registers, whatever is written to the list.
    const LossScale scale = of.scale;
    const float max = of.sums.max;
    const Floats lowest = splat(low);
    const Floats above_highest = splat(high);
    Ints equals[kMostValues] = {};
    Ints insides = {};
    of.list.clear();
    for (int number = 0; number < of.row.num_blocks(); ++number) {
      if (of.sums.block_max[number] < low) continue;
      if (!kCount && of.list.size > LogitList::kRoom) return false;
      const Block<Element> block = of.row.block(number);
      float* target = of.list.logits + of.list.size;
      Floats above = {};
      Floats moment = {};
      for (int i = 0; i < block.padded; i += 2 * kLanes) {
        const TwoFloats two = load_two(block.data + i);
        for (int half = 0; half < 2; ++half) {
          const Floats logits = half == 0 ? two.first : two.second;
          const Floats differences = scale.difference(logits, max);
          const Floats weights = scale.weights(differences);
          const Mask is_above = at_least(logits, above_highest) & greater(splat(dust_high), logits);
          add_where(is_above, above, weights);
          add_where(is_above, moment, weights * differences);
          const Mask inside = at_least(logits, lowest) & greater(above_highest, logits);
          if constexpr (kCount) {
            count_where(inside, insides);
            for (int value = 0; value < kMostValues; ++value) {
              count_where(equal(logits, splat(values[value])), equals[value]);
            }
          } else {
            target += write_chosen(target, logits, inside);
          }
        }
      }
      of.list.size = static_cast<int>(target - of.list.logits);
      mass_above += static_cast<double>(sum_of_lanes(above));
      moment_above += static_cast<double>(sum_of_lanes(moment));
    }
    of.list.pad();
    int64_t others = 0;
    for (int lane = 0; kCount && lane < kLanes; ++lane) others += insides[lane];
    for (int value = 0; kCount && value < num_values; ++value) {
      counts[value] = 0;
      for (int lane = 0; lane < kLanes; ++lane) counts[value] += equals[value][lane];
      others -= counts[value];
    }
    return others == 0;
  }
};

// Everything of probability below kLight. Where P falls into it, a guess says where. If that is
// wrong, or a sample does not show how heavy the tokens are, all of it is taken apart.
template <typename Element, typename Shares>
void walk_dust(const LossRow<Element>& of, Dust& dust, SoftTopPWalk& walk, LabelSide& side,
               Shares& shares) {
  if (walk.remaining <= 0.0) {
    walk.close();
    return;
  }
  const double total = of.total();
  const float label = of.row[of.label];
  const auto walk_slots = [&](const Band& band, const Slots& slots) {
    walk_band(of, band, slots, walk, side,
              [&](int, const TokenGroup& group, const HeadPart& part, const GroupShare& share) {
                shares.dust(group, part, share, walk);
              });
  };
  double probability = 0.5 * kLight;  // of what is left in the end, at most
  const auto walk_guessed = [&] {
    DustGuess guess(of, dust.band, walk.room() / walk.remaining);
    const Band band(of.scale, of.sums.max, guess.low, guess.high, Slots::kMax);
    if (band.empty() || !guess.measure(of, dust.high)) return false;
    Slots slots(band.slots);
    double inside = 0.0;
    if (guess.num_values == 0) {
      fill_slots(of.row, of.scale, of.sums, of.list, band, slots);
      for (int slot = 0; slot < band.slots; ++slot) inside += slots.mass(slot) / total;
    }
    for (int value = 0; value < guess.num_values; ++value) {
      inside += static_cast<double>(guess.counts[value]) * of.probability(guess.values[value]);
    }
    const double above = guess.mass_above / total;
    if (above > walk.room() || above + inside <= walk.room()) return false;
    if (label < dust.high && !(label >= guess.low && label < guess.high)) {
      side.set(label >= guess.high);
    }
    if (guess.mass_above > 0.0) {
      const double distance = -guess.moment_above * of.scale.inverse / guess.mass_above;
      const TokenGroup group = {above, of.mean_distance() - distance, 0.0};
      const HeadPart part = {group.mass, group.lambda};
      shares.dust(group, part, walk.add(group, part), walk);
    }
    if (guess.num_values == 0) walk_slots(band, slots);
    for (int value = 0; value < guess.num_values; ++value) {
      const double of_one = of.probability(guess.values[value]);
      walk_equals(of, guess.values[value],
                  {static_cast<double>(guess.counts[value]) * of_one,
                   of.lambda(guess.values[value]), of_one},
                  walk, side, shares);
    }
    probability = guess.mass_below > 0.0 ? guess.squares_below / guess.mass_below / total : 0.0;
    return true;
  };
  const bool in_parts = walk.passed() <= walk.top_p && walk.passed() + walk.remaining > walk.top_p;
  bool guessed = false;
  if (!dust.apart && !dust.band.empty()) {
    if (in_parts) {
      guessed = walk_guessed();
      if (!guessed) dust.take_apart(of);
    } else if (walk.passed() > walk.top_p &&
               walk.remaining * walk.decay(walk.passed()) > walk.tail / 32.0) {
      // Where dust is much of the tail, what it weighs matters.
      if (label < dust.high) side.set(false);
      if (walk_sampled(of, dust.band, walk, shares)) return;
      dust.take_apart(of);
    }
  }
  if (dust.apart) {
    of.list.complete = false;  // it holds other tokens
    walk_slots(dust.band, dust.slots);
    return;
  }
  if (walk.remaining <= 0.0) {
    walk.close();
    return;
  }
  const TokenGroup group = {walk.remaining, -walk.slope / walk.remaining,
                            walk.remaining < probability ? walk.remaining : probability};
  const bool crosses = walk.crosses(group);
  const HeadPart part = crosses ? walk.head_of_light(group) : walk.all_or_nothing(group);
  if (!guessed && !crosses && label < dust.high) side.in_group(part);
  shares.dust(group, part, walk.add(group, part), walk);
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
