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

  // The list has the tokens from `lightest` on.
  template <typename Element>
  LightBand(const Row<Element>& row, const LossScale& scale, const LossSums& sums,
            const LogitList& list, float lightest, int most_heavy, int num_slots)
      : heavy_logit(lowest_heavy(scale, sums, most_heavy)),
        light_logit(lightest),
        band(scale, sums.max, lowest_light(row, sums, list),
             heavy_logit < sums.max ? heavy_logit : sums.max, num_slots) {}

 private:
  // Above the maximum where that is lighter: its double may not be, of a small T or a large logit.
  static float lowest_heavy(const LossScale& scale, const LossSums& sums, int most_heavy) {
    const double share = most_heavy / sums.all.total();
    return share < 1.0 ? kInfinity : scale.logit_at(logarithm(share), sums.max);
  }
  // Where the tokens are close to each other, so are the slots.
  template <typename Element>
  float lowest_light(const Row<Element>& row, const LossSums& sums, const LogitList& list) const {
    Floats lowest = splat(kLargestFloat);
    for_logits(row, sums, list, light_logit, [&](Floats logits) {
      lowest =
          choose(at_least(logits, splat(light_logit)) & greater(lowest, logits), logits, lowest);
    });
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

// What is left past P next to 1 is less than a rounding of the sums over all tokens.
inline bool is_next_to_one(float top_p) { return top_p > 1.0f - 0x1p-10f && top_p < 1.0f; }

// Sums in which every part of a row is as exact as it is small.
template <typename Element, int kSize>
WeightSums sums_of_parts(const LossRow<Element>& of, const LogitsOf<kSize>& heavy,
                         const Slots& light, int num_light, const Dust& dust) {
  WeightSums all = {0.0, 0.0, of.all.at_max};
  for (int i = 0; i < heavy.size; ++i) {
    if (heavy.logits[i] == of.sums.max) continue;
    const double distance = of.scale.distance(heavy.logits[i], of.sums.max);
    const double weight = exponential(-distance);
    all.rest += weight;
    all.moment -= weight * distance / of.scale.inverse;
  }
  const auto add = [&](const Slots& slots, int number) {
    for (int slot = 0; slot < number; ++slot) {
      all.rest += slots.mass(slot);
      all.moment += slots.moment(slot);
    }
  };
  add(light, num_light);
  add(dust.slots, dust.band.slots);
  return all;
}

// Walks all tokens; `label` is filled in.
template <typename Element, typename Shares>
SoftTopPWalk walk_row(LossRow<Element> of, const LossOptions& options, float top_p,
                      const LightBand& light, LabelToken& label, Shares& shares) {
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
  Dust dust(of, light.light_logit);
  if (is_next_to_one(top_p)) {
    dust.take_apart(of);
    of.all = sums_of_parts(of, heavy, slots, light.band.slots, dust);
  }

  const float label_logit = of.row[of.label];
  const double probability = of.probability(label_logit);
  const double lambda = of.lambda(label_logit);
  label = {probability, lambda, standing_of_label(of, probability, lambda, options.exclusive),
           false};

  LabelSide side;
  if (heavy.size > 0) {
    walk_heavy(of, heavy, walk, label, shares);
  } else {
    const double total = of.total();
    const double equals = static_cast<double>(of.all.at_max);
    walk_equals(of, of.sums.max, {equals / total, of.mean_distance(), 1.0 / total}, walk, side,
                shares);
    walk.remaining = of.all.rest / total;
  }
  if (!light.band.empty()) {
    walk_band(of, light.band, slots, walk, side,
              [&](int slot, const TokenGroup& group, const HeadPart& part,
                  const GroupShare& share) { shares.slot(slot, group, part, share, walk); });
  }
  walk_dust(of, dust, walk, side, shares);
  shares.cut_at(side.edge());
  if (!(label_logit >= light.heavy_logit)) {
    label.at.mass = side.corrected(label.at.mass, walk.top_p);
  }
  return walk;
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
