// All tokens of a row in rank order: heavy ones, light ones in groups, dust.
#pragma once

#include "loss_dust.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// The tokens of a row that are not dust.
struct LightBand {
  float heavy_logit;  // tokens from here on are heavy
  float light_logit;  // and dust below
  Band band;

  LightBand(const LossScale& scale, const LossSums& sums, const LogitList& list, int most_heavy,
            int num_slots)
      : heavy_logit(scale.logit_at(logarithm(most_heavy / sums.all.total()), sums.max)),
        light_logit(lightest_logit(scale, sums)),
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

// From the side of the label that has less: the sum over all tokens is known to a rounding of it.
template <typename Element>
Standing standing_of_label(const LossRow<Element>& of, double probability, double lambda,
                           bool exclusive) {
  const auto standing = [&](const WeightSums& part, double taken) {
    const double mass = part.total() / of.total();
    const double slope = of.mean_distance() * mass + part.moment * of.scale.inverse / of.total();
    const double left = mass + taken * probability;
    return Standing{left < 0.0 ? 0.0 : left, slope + taken * probability * lambda};
  };
  if (of.sums.before.total() <= of.sums.after.total()) {
    const Standing before = standing(of.sums.before, exclusive ? 0.0 : 1.0);
    return {before.mass < 1.0 ? before.mass : 1.0, before.slope};
  }
  const Standing after = standing(of.sums.after, exclusive ? 0.0 : -1.0);
  return {1.0 - after.mass, -after.slope};
}

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
  label = {probability, lambda, standing_of_label(of, probability, lambda, options.exclusive),
           false};

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
