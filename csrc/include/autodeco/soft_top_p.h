// The soft-top-p loss of one row from sums over its tokens in rank order (docs/architecture.md,
// «The training losses»), in double. Every device shares it: no library function is called.
//
// p are the probabilities at T, C and D the running sums of p and p * lambda with lambda = (l -
// E[l]) / T, m = exp(-a (C - P)) where C > P and 1 elsewhere, u = p m. `static constexpr`: see
// order.h.
#pragma once

#include <bit>
#include <cstdint>

namespace autodeco {

// e^x, relative error below 1e-15; 0 below -708, for x up to 700. NaN stays NaN.
static constexpr double exponential(double x) {
  constexpr double kRoundToInteger = 0x1.8p52;
  const double clamped = x < -709.0 ? -709.0 : x;
  const double n = (clamped * 0x1.71547652b82fep0 + kRoundToInteger) - kRoundToInteger;
  const double r = (clamped - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  // n + bias is left in the low bits of a sum that has no fraction.
  const uint64_t exponent = std::bit_cast<uint64_t>(n + (kRoundToInteger + 1023.0)) << 52;
  return x < -708.0 ? 0.0 : p * std::bit_cast<double>(exponent);
}

// ln(1 + z) for z > -1/4, relative error below 1e-15 near 0 too: 2 artanh(z / (2 + z)).
static constexpr double logarithm_1p_small(double z) {
  const double s = z / (2.0 + z);
  const double square = s * s;
  double p = 1.0 / 25.0;
  for (int odd = 23; odd >= 1; odd -= 2) p = p * square + 1.0 / odd;
  return 2.0 * s * p;
}

// ln(x) for positive finite x that is no subnormal; -infinity for 0. NaN stays NaN.
static constexpr double logarithm(double x) {
  if (x == 0.0) return -__builtin_huge_val();
  if (x != x) return x;
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double mantissa = std::bit_cast<double>((bits & ((uint64_t{1} << 52) - 1)) | (1023ull << 52));
  if (mantissa > 1.4142135623730951) {
    mantissa *= 0.5;
    ++exponent;
  }
  return exponent * 0x1.62e42fefa39efp-1 + logarithm_1p_small(mantissa - 1.0);
}

static constexpr double logarithm_1p(double z) {
  return z < 0.4 ? logarithm_1p_small(z) : logarithm(1.0 + z);
}

// 1 - e^-z for z >= 0.
static constexpr double one_minus_exponential(double z) {
  if (z > 0.25) return 1.0 - exponential(-z);
  double p = 1.0;
  for (int k = 12; k >= 2; --k) p = 1.0 - p * z / k;
  return z * p;
}

// z / (e^z - 1) for z >= 0: how much less a token keeps than the decay over its slice of mass.
static constexpr double slice_factor(double z) {
  if (z > 0.5) return z * exponential(-z) / one_minus_exponential(z);
  const double square = z * z;
  return 1.0 - 0.5 * z +
         square *
             (1.0 / 12.0 - square * (1.0 / 720.0 - square * (1.0 / 30240.0 - square / 1209600.0)));
}

// Tokens side by side in rank order that are taken for equal ones.
struct TokenGroup {
  double mass;
  double lambda;       // mean by mass
  double probability;  // of one token
};

// The part of a group that belongs to the head.
struct HeadPart {
  double mass;
  double lambda;  // mean by mass
};

// What the tail of a group keeps: sum of u, and of u times the mass of the group up to the token.
struct GroupShare {
  double kept;
  double kept_mass;
};

// Where a token stands: its running sums C and D.
struct Standing {
  double mass;
  double slope;
};

namespace {

// Goes through the tokens of a row in rank order and sums what they keep. In an unnamed namespace,
// because members have no `static` for that.
struct SoftTopPWalk {
  double steepness;
  double top_p;
  bool exclusive;

  // What has not been passed; carried, because 1 - C would cancel.
  double remaining = 1.0;
  double slope = 0.0;  // D of what has been passed

  double head = 0.0;     // sum of u where m = 1
  double tail = 0.0;     // and elsewhere
  double trend = 0.0;    // sum of u lambda, less a sum of u D in the tail
  double leaning = 0.0;  // sum of u C in the tail

  constexpr double passed() const { return 1.0 - remaining; }

  constexpr void pass(double mass, double lambda) {
    remaining = remaining > mass ? remaining - mass : 0.0;
    slope += mass * lambda;
  }

  // Tokens that are too light for `remaining` may be so far away that they count in the slope,
  // which is zero after all tokens.
  constexpr void close() {
    trend -= decay(passed()) * slope;
    slope = 0.0;
  }

  constexpr Standing standing(double probability, double lambda) const {
    if (exclusive) return {passed(), slope};
    const double left = remaining > probability ? remaining - probability : 0.0;
    return {1.0 - left, slope + probability * lambda};
  }

  constexpr double decay(double mass) const {
    return mass > top_p ? exponential(-steepness * (mass - top_p)) : 1.0;
  }

  // One token.
  constexpr void add(double probability, double lambda) {
    const Standing at = standing(probability, lambda);
    if (at.mass > top_p) {
      const double kept = probability * exponential(-steepness * (at.mass - top_p));
      tail += kept;
      trend += kept * (lambda - steepness * at.slope);
      leaning += kept * at.mass;
    } else {
      head += probability;
      trend += probability * lambda;
    }
    pass(probability, lambda);
  }

  // What of P is left.
  constexpr double room() const {
    const double mass = passed();
    return top_p > mass ? top_p - mass : 0.0;
  }

  // Whether some of a group may be head and some tail, so that the head's mass must be found. With
  // an exclusive C the head may turn out to be all of it: that depends on its last token.
  constexpr bool crosses(const TokenGroup& group) const {
    if (passed() > top_p) return false;
    // Rounding must not let the sum pass 1.
    const double left = remaining > group.mass ? remaining - group.mass : 0.0;
    return 1.0 - left > top_p;
  }

  // The head's part of a group that crosses: of equal tokens, exact.
  constexpr HeadPart head_of_equals(const TokenGroup& group) const {
    const double count = static_cast<double>(
        static_cast<int64_t>(room() / group.probability * (1.0 + 1e-12)) + (exclusive ? 1 : 0));
    const double mass = count * group.probability;
    return {mass < group.mass ? mass : group.mass, group.lambda};
  }

  // The same where tokens are so light that the one on the edge need not be known.
  constexpr HeadPart head_of_light(const TokenGroup& group) const {
    const double mass = room() + (exclusive ? 0.5 : -0.5) * group.probability;
    return {mass < 0.0 ? 0.0 : (mass < group.mass ? mass : group.mass), group.lambda};
  }

  // A group whose first part belongs to the head.
  constexpr GroupShare add(const TokenGroup& group, const HeadPart& part) {
    GroupShare share = {0.0, 0.0};
    head += part.mass;
    trend += part.mass * part.lambda;
    const double mass = group.mass - part.mass;
    if (mass > 0.0) {
      const double lambda = (group.mass * group.lambda - part.mass * part.lambda) / mass;
      const double before = passed() + part.mass;
      const double slope_before = slope + part.mass * part.lambda;
      // The sums over n equal tokens are geometric: p / (e^(a p) - 1) is the factor of the first.
      const double lost = one_minus_exponential(steepness * mass);
      const double z = steepness * group.probability;
      const double shared = slice_factor(z) / steepness;
      const double own = shared + group.probability;
      const double factor = exponential(-steepness * (before - top_p)) * (exclusive ? own : shared);
      share.kept = factor * lost;
      share.kept_mass = factor * ((exclusive ? shared : own) * lost - mass * (1.0 - lost));
      tail += share.kept;
      trend +=
          lambda * share.kept - steepness * (slope_before * share.kept + lambda * share.kept_mass);
      leaning += before * share.kept + share.kept_mass;
    }
    pass(group.mass, group.lambda);
    return share;
  }

  // The head's part of a group that does not cross.
  constexpr HeadPart all_or_nothing(const TokenGroup& group) const {
    return {passed() > top_p ? 0.0 : group.mass, group.lambda};
  }
};

}  // namespace

// On which side of the cut a walk has put the label. Sums that are rounded otherwise than those of
// the walk may say otherwise where P is within rounding of C, and the label would be missing from
// both sides or counted in both.
enum class CutSide : uint8_t { kUnknown, kHead, kTail };

// C of the label, on that side.
static constexpr double mass_on_side(double mass, double top_p, CutSide side) {
  if (side == CutSide::kHead && mass > top_p) return top_p;
  if (side == CutSide::kTail && !(mass > top_p)) return top_p + 0x1p-52;
  return mass;
}

struct LabelToken {
  double probability;
  double lambda;
  Standing at;
  bool apart;  // the walk passed it without adding it
};

struct SoftTopPLoss {
  double loss;
  double temperature_gradient;
  double top_p_gradient;

  // The gradient with respect to logit k, times T: p_k (per_share (m_k - a U_k) + (k counts in C
  // of the label ? edge : 0) - mean), less `ratio` at the label itself. U_k is the sum of u over
  // the tail from k on, without k where C is exclusive.
  double per_share;
  double edge;
  double mean;
  double ratio;
};

static constexpr SoftTopPLoss soft_top_p_loss(const SoftTopPWalk& walk, const LabelToken& label,
                                              double temperature, double mass_eps,
                                              double probability_eps) {
  const double a = walk.steepness;
  const bool in_tail = label.at.mass > walk.top_p;
  const double kept = label.probability * walk.decay(label.at.mass);
  const double head = walk.head + (label.apart && !in_tail ? kept : 0.0);
  const double tail = walk.tail + (label.apart && in_tail ? kept : 0.0);
  const double leaning = walk.leaning + (label.apart && in_tail ? kept * label.at.mass : 0.0);
  const double others = walk.head + walk.tail + mass_eps;  // where the label is apart
  const double total = head + tail + mass_eps;
  const double share = kept / total;
  const double ratio = probability_eps > 0.0 ? share / (share + probability_eps) : 1.0;
  const double own = -label.lambda + (in_tail ? a * label.at.slope : 0.0);
  SoftTopPLoss result = {};
  // Where the label is apart, 1 - share is not formed by subtraction. Only where it is small: a
  // quotient by a share of next to nothing would overflow.
  result.loss = label.apart && share > 0x1p-10
                    ? logarithm_1p(others / kept) - logarithm_1p(probability_eps / share)
                    : -logarithm(share + probability_eps);
  result.top_p_gradient =
      in_tail ? -ratio * a * (head + mass_eps) / total : ratio * a * tail / total;
  const double pull = label.apart ? (own * others + walk.trend) / total : own + walk.trend / total;
  result.temperature_gradient = -ratio * pull / temperature;
  result.per_share = ratio / total;
  result.edge = in_tail ? a * ratio : 0.0;
  result.mean =
      -ratio + result.per_share * (head + tail - a * leaning) + result.edge * label.at.mass;
  result.ratio = ratio;
  return result;
}

}  // namespace autodeco
