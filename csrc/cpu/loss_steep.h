// The tokens of a row one by one, in double: for a steepness that would show how float32 rounds.
#pragma once

#include "loss_walk.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// C is known to 2e-7 from float32 weights. Above this steepness that is more than 1e-5 of a decay.
constexpr double kSteep = 50.0;

template <typename Element>
WeightSums exact_sums(const LossRow<Element>& of) {
  WeightSums all;
  for (int number = 0; number < of.row.num_blocks(); ++number) {
    const Block<Element> block = of.row.block(number);
    for (int i = 0; i < block.size; ++i) {
      const float logit = to_float(block.data[i]);
      if (logit == of.sums.max) {
        ++all.at_max;
      } else if (logit > -kInfinity) {
        const double distance = of.scale.distance(logit, of.sums.max);
        const double weight = exponential(-distance);
        all.rest += weight;
        all.moment -= weight * distance / of.scale.inverse;
      }
    }
  }
  return all;
}

// Calls function(logits, mask of those with low <= l < high).
template <typename Element, typename Function>
void for_range(const LossRow<Element>& of, float low, float high, Function&& function) {
  for (int number = 0; number < of.row.num_blocks(); ++number) {
    if (of.sums.block_max[number] < low) continue;
    const Block<Element> block = of.row.block(number);
    for (int i = 0; i < block.padded; i += kLanes) {
      const Floats logits = load(block.data + i);
      function(logits, at_least(logits, splat(low)) & greater(splat(high), logits));
    }
  }
}

template <typename Element>
int64_t count_range(const LossRow<Element>& of, float low, float high) {
  int64_t count = 0;
  for_range(of, low, high,
            [&](Floats, Mask inside) { count += __builtin_popcount(bits_of(inside)); });
  return count;
}

// The smallest key from which on the tokens below `end` fit the list; `end` itself where the next
// value has too many.
template <typename Element>
uint32_t begin_of_list(const LossRow<Element>& of, uint32_t end) {
  const auto fits = [&](uint32_t key) {
    return count_range(of, logit_of_key(key), logit_of_key(end)) <= LogitList::kCapacity;
  };
  uint32_t too_many = order_key(-kLargestFloat);
  if (fits(too_many)) return too_many;
  uint32_t begin = end;
  while (begin - too_many > 1) {
    const uint32_t middle = too_many + (begin - too_many) / 2;
    (fits(middle) ? begin : too_many) = middle;
  }
  return begin;
}

// Walks the tokens that are not yet decayed to nothing; `label` is filled in. As many of the
// largest logits as fit the list are sorted, then the next ones. Much slower than walk_row.
template <typename Element>
SoftTopPWalk walk_singly(LossRow<Element> of, const LossOptions& options, float top_p,
                         LabelToken& label) {
  of.all = exact_sums(of);
  SoftTopPWalk walk{options.steepness, static_cast<double>(top_p), options.exclusive};
  const float label_logit = of.row[of.label];
  const int64_t equals_before = equals_before_label(of);
  const uint32_t lowest = order_key(-kLargestFloat);
  int64_t passed = 0;
  int64_t equals = 0;  // of the label that have been passed
  bool label_passed = false;
  label = {
      of.probability(label_logit), of.lambda(label_logit),
      standing_of_label(of, of.probability(label_logit), of.lambda(label_logit), options.exclusive),
      false};
  const auto walk_token = [&](double probability, double lambda, bool like_label) {
    if (like_label && equals++ == equals_before) {
      label = {probability, lambda, walk.standing(probability, lambda), true};
      label_passed = true;
      walk.pass(probability, lambda);
    } else {
      walk.add(probability, lambda);
    }
    // Exact once the tokens at the maximum are passed, however little is left.
    if (++passed == of.all.at_max) walk.remaining = of.all.rest / of.total();
  };
  for (uint32_t end = order_key(of.sums.max) + 1; end > lowest && walk.remaining > 0.0;) {
    // What is left has decayed to less than a rounding of what has been walked.
    const double kept = walk.remaining * walk.decay(walk.passed());
    if (kept == 0.0 || (label_passed && kept < 1e-25 * (walk.head + walk.tail))) break;
    const uint32_t begin = begin_of_list(of, end);
    if (begin == end) {
      const float logit = logit_of_key(--end);
      const int64_t count = count_range(of, logit, logit_of_key(end + 1));
      const double probability = of.probability(logit);
      const double lambda = of.lambda(logit);
      for (int64_t i = 0; i < count; ++i) walk_token(probability, lambda, logit == label_logit);
      continue;
    }
    of.list.clear();
    for_range(of, logit_of_key(begin), logit_of_key(end),
              [&](Floats logits, Mask inside) { of.list.append(logits, inside); });
    sort_descending(of.list);
    for (int i = 0; i < of.list.size; ++i) {
      const float logit = of.list.logits[i];
      walk_token(of.probability(logit), of.lambda(logit), logit == label_logit);
    }
    end = begin;
  }
  return walk;
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
