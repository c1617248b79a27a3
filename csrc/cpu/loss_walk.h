// The tokens of a row in rank order, single or in groups, and what they keep under the soft top-p.
#pragma once

#include <cmath>

#include "autodeco/autodeco_loss.h"
#include "loss_groups.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

inline double clamped(float temperature, float clamp) {
  return static_cast<double>(temperature < clamp ? clamp : temperature);
}

// Sum of weights at T = 1.
template <typename Element>
double unit_total(const Row<Element>& row, const LossScale& scale, const LossSums& sums) {
  if (scale.temperature == 1.0) return sums.all.total();
  if (scale.plain()) return sums.unit;
  LossSums at_one;
  sum_row<false>(row, LossScale(1.0), -1, nullptr, at_one);
  return at_one.all.total();
}

// The sums at a temperature, with those at T = 1 where they come along.
template <typename Element>
void sum_at(const Row<Element>& row, const LossScale& scale, int label, LogitList* list,
            LossSums& sums) {
  if (scale.plain() && scale.temperature != 1.0) {
    sum_row<true>(row, scale, label, list, sums);
  } else {
    sum_row<false>(row, scale, label, list, sums);
  }
}

// What a walk works with.
template <typename Element>
struct LossRow {
  const Row<Element>& row;
  const LossScale& scale;
  const LossSums& sums;
  LogitList& list;
  int label;

  double total() const { return sums.all.total(); }
  // Mean of x = (max - l) / T.
  double mean_distance() const { return -sums.all.moment * scale.inverse / total(); }
  double probability(float logit) const {
    return exponential(-scale.distance(logit, sums.max)) / total();
  }
  double lambda(float logit) const { return mean_distance() - scale.distance(logit, sums.max); }
};

// What the gradient with respect to the logits needs to know of a walk: see
// autodeco_loss_gradient_impl.h. The losses need nothing.
struct NoShares {
  static constexpr bool kLabelApart = true;
  // A token that makes up more than one part in so many of a row is walked on its own.
  static constexpr int kMostHeavy = 1024;
  static constexpr int kSlots = 128;  // of those that are neither heavy nor dust

  void heavy(float, const SoftTopPWalk&) {}
  void slot(int, const TokenGroup&, const HeadPart&, const GroupShare&, const SoftTopPWalk&) {}
  void dust(const TokenGroup&, const HeadPart&, const GroupShare&, const SoftTopPWalk&) {}
};

// A group that P crosses is divided at the token on the edge, unless its tokens weigh next to
// nothing against the tail.
template <typename Element>
HeadPart head_of_slot(const LossRow<Element>& of, const SoftTopPWalk& walk, const TokenGroup& group,
                      const Band& band, int slot) {
  constexpr double kNegligible = 2e-5;
  const double tail = one_minus_exponential(walk.steepness * (1.0 - walk.top_p)) / walk.steepness;
  if (group.probability <= kNegligible * tail) return walk.head_of_light(group);
  const double total = of.total();
  Crossing crossing =
      find_crossing(of.row, of.scale, of.sums, band, slot, walk.room() * total, of.list);
  if (walk.exclusive) {
    const double distance = of.scale.distance(crossing.next_logit, of.sums.max);
    crossing.take(crossing.next, -crossing.next * distance / of.scale.inverse);
  }
  if (!(crossing.prefix > 0.0)) return {0.0, group.lambda};
  const double mass = crossing.prefix / total;
  const double distance = -crossing.moment * of.scale.inverse / crossing.prefix;
  return {mass < group.mass ? mass : group.mass, of.mean_distance() - distance};
}

// Calls done(slot, group, part, share) with the groups of a band's slots, in order.
template <typename Element, typename Done>
void walk_band(const LossRow<Element>& of, const Band& band, const Slots& slots, SoftTopPWalk& walk,
               Done&& done) {
  const double total = of.total();
  const double mean = of.mean_distance();
  for (int slot = 0; slot < band.slots; ++slot) {
    const double mass = slots.mass(slot);
    if (mass == 0.0) continue;
    const double distance = -slots.moment(slot) / mass * of.scale.inverse;
    const TokenGroup group = {mass / total, mean - distance, exponential(-distance) / total};
    const HeadPart part = walk.crosses(group) ? head_of_slot(of, walk, group, band, slot)
                                              : walk.all_or_nothing(group);
    done(slot, group, part, walk.add(group, part));
  }
}

// The heaviest tokens, one by one. If the label is among them, its place is filled in, and the
// losses leave it out of the walk until the end.
template <typename Element, typename Heavy, typename Shares>
void walk_heavy(const LossRow<Element>& of, const Heavy& heavy, SoftTopPWalk& walk,
                LabelToken& label, Shares& shares) {
  const float label_logit = of.row[of.label];
  int place_of_label = -1;
  for (int i = 0; i < heavy.size; ++i) {
    const float logit = heavy.logits[i];
    const double probability = of.probability(logit);
    const double lambda = of.lambda(logit);
    if (logit == label_logit && place_of_label < 0) {
      // The sums before the label say how many of its equals precede it.
      const double equals = (of.sums.before.total() / of.total() - walk.passed()) / probability;
      place_of_label = i + (equals > 0.0 ? static_cast<int>(equals + 0.5) : 0);
    }
    if (i == place_of_label) {
      label = {probability, lambda, walk.standing(probability, lambda), Shares::kLabelApart};
    }
    if (i == place_of_label && Shares::kLabelApart) {
      walk.pass(probability, lambda);
    } else {
      walk.add(probability, lambda);
    }
    shares.heavy(logit, walk);
    // Exact once the tokens at the maximum are passed, however little is left.
    if (i + 1 == of.sums.all.at_max) walk.remaining = of.sums.all.rest / of.total();
  }
}

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

// Mean probability of the tokens of a band, all of them tail, by what they keep: from a sample.
template <typename Element>
double sampled_probability(const LossRow<Element>& of, const Band& band, const SoftTopPWalk& walk) {
  Slots slots(band.slots);
  for_sample(of.row, [&](Floats logits) { slots.add(band, of.scale, of.sums.max, logits); });
  slots.flush();
  double total = 0.0;
  for (int slot = 0; slot < band.slots; ++slot) total += slots.mass(slot);
  double left = 1.0;  // of the decay
  double kept = 0.0;
  double weighted = 0.0;
  for (int slot = 0; slot < band.slots; ++slot) {
    const double mass = slots.mass(slot);
    if (mass == 0.0) continue;
    const double distance = -slots.moment(slot) / mass * of.scale.inverse;
    const double lost =
        left * one_minus_exponential(walk.steepness * walk.remaining * mass / total);
    kept += lost;
    weighted += lost * exponential(-distance) / of.total();
    left -= lost;
  }
  return kept > 0.0 ? weighted / kept : 0.0;  // all of it lies below the band
}

// An interval of the dust in which a part of its mass ends, and what lies above and below it.
struct DustGuess {
  float low;
  float high;
  double mass_above = 0.0;
  double moment_above = 0.0;
  double mass_below = 0.0;
  double squares_below = 0.0;  // of weights

  // From some tokens of every block. It depends on the row alone; where the row is not like them,
  // only time is lost.
  template <typename Element>
  DustGuess(const LossRow<Element>& of, const Band& dust, double share) {
    Floats lowest = splat(kInfinity);
    Floats highest = splat(-kInfinity);
    for_sample(of.row, [&](Floats logits) {
      const Mask inside = dust.contains(logits);
      lowest = choose(inside & greater(lowest, logits), logits, lowest);
      highest = choose(inside & greater(logits, highest), logits, highest);
    });
    low = dust.low;
    high = dust.high;
    const float sample_low = -largest_lane(-lowest);
    const float sample_high = largest_lane(highest);
    if (!(sample_low < sample_high)) return;
    const Band band(of.scale, of.sums.max, sample_low, float_above(sample_high), dust.slots);
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

  // Reads the row and lists the interval; false if the list has no room.
  template <typename Element>
  bool measure(const LossRow<Element>& of, float dust_high) {
    of.list.clear();
    for (int number = 0; number < of.row.num_blocks(); ++number) {
      if (of.list.size > LogitList::kRoom) return false;
      const Block<Element> block = of.row.block(number);
      Floats above = {};
      Floats moment = {};
      Floats below = {};
      Floats squares = {};
      for (int i = 0; i < block.padded; i += kLanes) {
        const Floats logits = load(block.data + i);
        const Floats differences = of.scale.difference(logits, of.sums.max);
        const Floats weights = of.scale.weights(differences);
        const Mask is_below = greater(splat(low), logits);
        const Mask is_above = at_least(logits, splat(high)) & greater(splat(dust_high), logits);
        add_where(is_above, above, weights);
        add_where(is_above, moment, weights * differences);
        add_where(is_below, below, weights);
        add_where(is_below, squares, weights * weights);
        of.list.append(logits, at_least(logits, splat(low)) & greater(splat(high), logits));
      }
      mass_above += static_cast<double>(sum_of_lanes(above));
      moment_above += static_cast<double>(sum_of_lanes(moment));
      mass_below += static_cast<double>(sum_of_lanes(below));
      squares_below += static_cast<double>(sum_of_lanes(squares));
    }
    of.list.pad();
    return true;
  }
};

// Everything of probability below kLight. Where P falls into it, a guess says where; if that is
// wrong, all of it is taken apart.
template <typename Element, typename Shares>
void walk_dust(const LossRow<Element>& of, float light_logit, SoftTopPWalk& walk, Shares& shares) {
  constexpr double kLightest = kLight * 0x1p-14;
  const double total = of.total();
  const float max = of.sums.max;
  const float dust_high = light_logit < max ? light_logit : max;
  double probability = 0.5 * kLight;  // of what is left in the end, at most
  const auto walk_slots = [&](const Band& band, const Slots& slots) {
    walk_band(of, band, slots, walk,
              [&](int, const TokenGroup& group, const HeadPart& part, const GroupShare& share) {
                shares.dust(group, part, share, walk);
              });
  };
  const auto walk_guessed = [&](const Band& dust) {
    DustGuess guess(of, dust, walk.room() / walk.remaining);
    if (!guess.measure(of, dust_high)) return false;
    const Band band(of.scale, max, guess.low, guess.high, Slots::kMax);
    if (band.empty()) return false;
    Slots slots(band.slots);
    fill_slots(of.row, of.scale, of.sums, of.list, band, slots);
    const double above = guess.mass_above / total;
    double inside = 0.0;
    for (int slot = 0; slot < band.slots; ++slot) inside += slots.mass(slot);
    if (above > walk.room() || above + inside / total <= walk.room()) return false;
    if (guess.mass_above > 0.0) {
      const double distance = -guess.moment_above * of.scale.inverse / guess.mass_above;
      const TokenGroup group = {above, of.mean_distance() - distance, 0.0};
      const HeadPart part = {group.mass, group.lambda};
      shares.dust(group, part, walk.add(group, part), walk);
    }
    walk_slots(band, slots);
    probability = guess.mass_below > 0.0 ? guess.squares_below / guess.mass_below / total : 0.0;
    return true;
  };
  if (walk.remaining <= 0.0) return;
  const float lowest = of.scale.logit_at(-logarithm(kLightest * total), max);
  const Band dust(of.scale, max, lowest, dust_high, Slots::kMax);
  const bool in_parts = walk.passed() <= walk.top_p && walk.passed() + walk.remaining > walk.top_p;
  if (in_parts) {
    if (!dust.empty() && !walk_guessed(dust)) {
      of.list.complete = false;  // it holds other tokens
      Slots slots(dust.slots);
      fill_slots(of.row, of.scale, of.sums, of.list, dust, slots);
      walk_slots(dust, slots);
      probability = 0.5 * kLightest;
    }
  }
  if (walk.remaining <= 0.0) return;
  // Where dust is much of the tail, what it weighs matters.
  const double kept = walk.remaining * walk.decay(walk.passed());
  if (!dust.empty() && !in_parts && walk.passed() > walk.top_p && kept > walk.tail / 32.0) {
    probability = sampled_probability(of, dust, walk);
  }
  const TokenGroup group = {walk.remaining, -walk.slope / walk.remaining,
                            walk.remaining < probability ? walk.remaining : probability};
  const HeadPart part =
      walk.crosses(group) ? walk.head_of_light(group) : walk.all_or_nothing(group);
  shares.dust(group, part, walk.add(group, part), walk);
}

// The tokens of a row that are not dust.
struct LightBand {
  float heavy_logit;  // tokens from here on are heavy
  float light_logit;  // and dust below
  Band band;

  LightBand(const LossScale& scale, const LossSums& sums, const LogitList& list, int most_heavy,
            int num_slots)
      : heavy_logit(scale.logit_at(logarithm(most_heavy / sums.all.total()), sums.max)),
        light_logit(scale.logit_at(-logarithm(kLight * sums.all.total()), sums.max)),
        band(scale, sums.max, lowest_light(list), heavy_logit < sums.max ? heavy_logit : sums.max,
             num_slots) {}

 private:
  // Where the tokens are close to each other, so are the slots.
  float lowest_light(const LogitList& list) const {
    if (!list.complete) return light_logit;
    Floats lowest = splat(kLargestFloat);
    for (int i = 0; i < list.size; i += kLanes) {
      const Floats logits = load(list.logits + i);
      lowest =
          choose(at_least(logits, splat(light_logit)) & greater(lowest, logits), logits, lowest);
    }
    return -largest_lane(-lowest);
  }
};

// Walks all tokens; `label` is filled in.
template <typename Element, typename Shares>
SoftTopPWalk walk_row(const LossRow<Element>& of, const LossOptions& options, float top_p,
                      const LightBand& light, LabelToken& label, Shares& shares) {
  const double total = of.total();
  SoftTopPWalk walk{options.steepness, static_cast<double>(top_p), options.exclusive};

  LogitsOf<Shares::kMostHeavy + 2 * kLanes> heavy;
  Slots slots(light.band.slots);
  for_logits(of.row, of.sums, of.list, light.light_logit, [&](Floats logits) {
    const Mask is_heavy = at_least(logits, splat(light.heavy_logit));
    if (bits_of(is_heavy) != 0) heavy.append(logits, is_heavy);
    slots.add(light.band, of.scale, of.sums.max, logits);
  });
  slots.flush();
  sort_descending(heavy);

  const float label_logit = of.row[of.label];
  const double probability = of.probability(label_logit);
  const double lambda = of.lambda(label_logit);
  const double mass_before = of.sums.before.total() / total;
  const double slope_before =
      of.mean_distance() * mass_before + of.sums.before.moment * of.scale.inverse / total;
  const double mass = mass_before + probability;
  label = {probability, lambda, {mass_before, slope_before}, false};
  if (!options.exclusive) {
    label.at = {mass < 1.0 ? mass : 1.0, slope_before + probability * lambda};
  }

  if (heavy.size > 0) {
    walk_heavy(of, heavy, walk, label, shares);
  } else {
    const double equals = static_cast<double>(of.sums.all.at_max);
    const TokenGroup group = {equals / total, of.mean_distance(), 1.0 / total};
    const HeadPart part =
        walk.crosses(group) ? walk.head_of_equals(group) : walk.all_or_nothing(group);
    shares.dust(group, part, walk.add(group, part), walk);
    walk.remaining = of.sums.all.rest / total;
  }
  if (!light.band.empty()) {
    walk_band(of, light.band, slots, walk,
              [&](int slot, const TokenGroup& group, const HeadPart& part,
                  const GroupShare& share) { shares.slot(slot, group, part, share, walk); });
  }
  walk_dust(of, light.light_logit, walk, shares);
  return walk;
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
