// Tokens of a row, single or in the groups of a band, in rank order, and what they keep under the
// soft top-p.
#pragma once

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
  sum_row(row, LossScale(1.0), kNoLabel, UnitSum::kNo, at_one);
  return at_one.all.total();
}

// What a walk works with.
template <typename Element>
struct LossRow {
  const Row<Element>& row;
  const LossScale& scale;
  const LossSums& sums;
  LogitList& list;
  int label;
  WeightSums all = sums.all;  // of the first read, or better ones where those do not suffice

  double total() const { return all.total(); }
  // Mean of x = (max - l) / T.
  double mean_distance() const { return -all.moment * scale.inverse / total(); }
  double probability(float logit) const {
    return exponential(-scale.distance(logit, sums.max)) / total();
  }
  double lambda(float logit) const { return mean_distance() - scale.distance(logit, sums.max); }
};

// The head ends with the first `equals` tokens of a logit; with no token, where the walk has not
// looked for one.
struct Edge {
  float logit = kInfinity;
  int64_t equals = 0;
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
  void cut_at(const Edge&) {}
};

// How many tokens of the label's logit rank before it.
template <typename Element>
int64_t equals_before_label(const LossRow<Element>& of) {
  const float logit = of.row[of.label];
  int64_t count = 0;
  for (int column = 0; column < of.label; ++column) count += of.row[column] == logit;
  return count;
}

// On which side of the cut the walk has put the label, and where the head ends.
class LabelSide {
 public:
  template <typename Element>
  void at_edge(const LossRow<Element>& of, const Edge& edge) {
    edge_ = edge;
    const float label = of.row[of.label];
    if (label == edge.logit) {
      set(equals_before_label(of) < edge.equals);
    } else {
      set(label > edge.logit);
    }
  }
  void in_group(const HeadPart& part) { set(part.mass > 0.0); }
  void set(bool is_head) { side_ = is_head ? CutSide::kHead : CutSide::kTail; }
  const Edge& edge() const { return edge_; }

  // C_y of sums that are rounded otherwise than those of the walk.
  double corrected(double mass, double top_p) const { return mass_on_side(mass, top_p, side_); }

 private:
  CutSide side_ = CutSide::kUnknown;
  Edge edge_;
};

// A group that P crosses is divided at the token on the edge, unless its tokens weigh next to
// nothing against the tail.
template <typename Element>
HeadPart head_of_slot(const LossRow<Element>& of, const SoftTopPWalk& walk, const TokenGroup& group,
                      const Band& band, int slot, LabelSide& side) {
  constexpr double kNegligible = 2e-5;
  const double tail = one_minus_exponential(walk.steepness * (1.0 - walk.top_p)) / walk.steepness;
  if (group.probability <= kNegligible * tail) return walk.head_of_light(group);
  const double total = of.total();
  Crossing crossing =
      find_crossing(of.row, of.scale, of.sums, band, slot, walk.room() * total, of.list);
  if (walk.exclusive) {
    const double distance = of.scale.distance(crossing.next_logit, of.sums.max);
    crossing.take(crossing.next, -crossing.next * distance / of.scale.inverse);
    if (crossing.equals != Crossing::kUnknown) ++crossing.equals;
  }
  if (crossing.next > 0.0 && crossing.equals != Crossing::kUnknown) {
    side.at_edge(of, {crossing.next_logit, crossing.equals});
  }
  if (!(crossing.prefix > 0.0)) return {0.0, group.lambda};
  const double mass = crossing.prefix / total;
  const double distance = -crossing.moment * of.scale.inverse / crossing.prefix;
  return {mass < group.mass ? mass : group.mass, of.mean_distance() - distance};
}

// Calls done(slot, group, part, share) with the groups of a band's slots, in order.
template <typename Element, typename Done>
void walk_band(const LossRow<Element>& of, const Band& band, const Slots& slots, SoftTopPWalk& walk,
               LabelSide& side, Done&& done) {
  const double total = of.total();
  const double mean = of.mean_distance();
  const int slot_of_label = band.slot_of(of.row[of.label], of.scale, of.sums.max);
  for (int slot = 0; slot < band.slots; ++slot) {
    const double mass = slots.mass(slot);
    if (mass == 0.0) continue;
    const double distance = -slots.moment(slot) / mass * of.scale.inverse;
    const TokenGroup group = {mass / total, mean - distance, exponential(-distance) / total};
    const bool crosses = walk.crosses(group);
    const HeadPart part =
        crosses ? head_of_slot(of, walk, group, band, slot, side) : walk.all_or_nothing(group);
    if (slot == slot_of_label && !crosses) side.in_group(part);
    done(slot, group, part, walk.add(group, part));
  }
}

// Equal tokens.
template <typename Element, typename Shares>
void walk_equals(const LossRow<Element>& of, float logit, const TokenGroup& group,
                 SoftTopPWalk& walk, LabelSide& side, Shares& shares) {
  const bool crosses = walk.crosses(group);
  const HeadPart part = crosses ? walk.head_of_equals(group) : walk.all_or_nothing(group);
  if (crosses) {
    side.at_edge(of, {logit, static_cast<int64_t>(part.mass / group.probability + 0.5)});
  } else if (of.row[of.label] == logit) {
    side.in_group(part);
  }
  shares.dust(group, part, walk.add(group, part), walk);
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
      // The sums before the label say how many of its equals precede it, where those outweigh what
      // float32 rounds of the whole.
      const double equals =
          probability > 0x1p-14
              ? (of.sums.before.total() / of.total() - walk.passed()) / probability + 0.5
              : static_cast<double>(equals_before_label(of));
      place_of_label = i + (equals > 0.0 ? static_cast<int>(equals) : 0);
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
    if (i + 1 == of.all.at_max) walk.remaining = of.all.rest / of.total();
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
