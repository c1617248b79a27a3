// The walk over the tokens of a row in rank order, by a whole block: scans give every thread what
// was passed before its item, so each item's share is found on its own. Then the losses.
#pragma once

#include "loss_memory.cuh"

namespace autodeco::cuda {

// Tokens side by side in rank order.
struct LossItem {
  uint32_t count = 0;
  TokenGroup group = {};
  bool equal = true;        // they have one logit
  uint32_t label_rank = 0;  // of the label among them, from 1; 0: it is not told apart here
  // Of the tokens up to the label that is one of them; the mass is below 0 where it is none. Those
  // that differ leave out the label where C is exclusive.
  double label_mass = -1.0;
  double label_slope = 0.0;
  CutSide label_side = CutSide::kUnknown;  // where they are told apart at the cut
  // Of tokens that are not equal and cross P: the share of the mass that is head, and its lambda.
  double head_share = -1.0;  // below 0: not known
  double head_lambda = 0.0;
};

__device__ __forceinline__ void add_equals(SoftTopPWalk& walk, uint32_t count, double probability,
                                           double lambda) {
  if (count == 0) return;
  if (count == 1) {
    walk.add(probability, lambda);
    return;
  }
  const TokenGroup group = {count * probability, lambda, probability};
  walk.add(group, walk.crosses(group) ? walk.head_of_equals(group) : walk.all_or_nothing(group));
}

__device__ __forceinline__ CutSide side_if(bool is_head) {
  return is_head ? CutSide::kHead : CutSide::kTail;
}

// The head's part of an item, before the walk has passed it.
__device__ __forceinline__ HeadPart head_of(const SoftTopPWalk& walk, const LossItem& item) {
  if (item.head_share >= 0.0) return {item.head_share * item.group.mass, item.head_lambda};
  if (!walk.crosses(item.group)) return walk.all_or_nothing(item.group);
  return item.equal ? walk.head_of_equals(item.group) : walk.head_of_light(item.group);
}

// Leaves the standing of a label that the walk does not tell apart from the others of its item, on
// the side of the cut where the walk has it.
__device__ __forceinline__ void note_label(const SoftTopPWalk& walk, const LossItem& item,
                                           const HeadPart& part) {
  const TokenGroup& group = item.group;
  Standing& at = LossMemory::head()->label_at;
  CutSide side = item.label_side;
  if (item.equal) {  // its place among them is a whole number
    double rank = item.label_rank;
    if (item.label_rank == 0) {
      rank = rint(item.label_mass / group.probability);
      rank = rank < 1.0 ? 1.0 : (rank < item.count ? rank : item.count);
    }
    SoftTopPWalk at_label = walk;
    at_label.pass((rank - 1.0) * group.probability, group.lambda);
    at = at_label.standing(group.probability, group.lambda);
    side = side_if(rank < part.mass / group.probability + 0.5);
  } else {
    const double left = walk.remaining - item.label_mass;
    at = {1.0 - (left > 0.0 ? left : 0.0), walk.slope + item.label_slope};
    if (side == CutSide::kUnknown && !walk.crosses(group)) side = side_if(part.mass > 0.0);
  }
  at.mass = mass_on_side(at.mass, walk.top_p, side);
}

__device__ __forceinline__ void add_item(SoftTopPWalk& walk, const LossItem& item) {
  const TokenGroup& group = item.group;
  if (item.equal && item.label_rank != 0) {
    add_equals(walk, item.label_rank - 1, group.probability, group.lambda);
    LossMemory::head()->label_at = walk.standing(group.probability, group.lambda);
    walk.pass(group.probability, group.lambda);
    add_equals(walk, item.count - item.label_rank, group.probability, group.lambda);
    return;
  }
  if (item.equal && item.count == 1 && !(item.label_mass >= 0.0)) {
    walk.add(group.probability, group.lambda);
    return;
  }
  const HeadPart part = head_of(walk, item);
  if (item.label_mass >= 0.0) note_label(walk, item, part);
  walk.add(group, part);
}

// What a walk does with its items, where nothing but their sums is wanted. Where an item holds the
// label apart, its standing is in head()->label_at.
struct SumItems {
  __device__ __forceinline__ void add(SoftTopPWalk& walk, const LossItem& item) {
    add_item(walk, item);
  }
  // By all threads, one item each; `walk` has added it.
  __device__ __forceinline__ void after(int, const LossItem&, const SoftTopPWalk&) {}
};

// The sums of a walk over item_of(0), item_of(1), ...; the same in every thread.
template <typename ItemOf, typename Items>
__device__ __forceinline__ SoftTopPWalk walk_items(int num_items, const SoftTopPWalk& start,
                                                   ItemOf item_of, Items& items) {
  LossHead* head = LossMemory::head();
  SoftTopPWalk sums = start;
  double mass_before = 0.0;
  double slope_before = 0.0;
#pragma unroll 1
  for (int begin = 0; begin < num_items; begin += static_cast<int>(gpu::num_threads())) {
    const int index = begin + static_cast<int>(gpu::thread_index());
    LossItem item;
    if (index < num_items) item = item_of(index);
    const double slope = item.group.mass * item.group.lambda;
    double mass_total;
    double slope_total;
    const double mass_upto =
        block_inclusive_sum(item.group.mass, head->scratch_double, &mass_total);
    const double slope_upto = block_inclusive_sum(slope, head->scratch_double, &slope_total);
    SoftTopPWalk walk = start;
    if (item.count != 0) {
      const double left = 1.0 - (mass_before + (mass_upto - item.group.mass));
      walk.remaining = left > 0.0 ? left : 0.0;
      walk.slope = slope_before + (slope_upto - slope);
      items.add(walk, item);
      sums.head += walk.head;
      sums.tail += walk.tail;
      sums.trend += walk.trend;
      sums.leaning += walk.leaning;
    }
    items.after(index, item, walk);
    mass_before += mass_total;
    slope_before += slope_total;
  }
  sums.head = block_sum(sums.head);
  sums.tail = block_sum(sums.tail);
  sums.trend = block_sum(sums.trend);
  sums.leaning = block_sum(sums.leaning);
  return sums;
}

__device__ __forceinline__ SoftTopPWalk start_walk(const LossOptions& options, float top_p) {
  // At P = 1 there is no tail, whatever the sums round to.
  return {options.steepness, top_p < 1.0f ? static_cast<double>(top_p) : 2.0, options.exclusive};
}

struct LossOutput {
  float losses[2];
  float gradients[3];
};

// ln(1 / p) of the label: without cancellation where the others weigh little.
__device__ __forceinline__ double cross_entropy(double label_weight, double other_weight,
                                                double distance) {
  if (other_weight < 0.25 * label_weight) return logarithm_1p(other_weight / label_weight);
  return logarithm(label_weight + other_weight) + distance;
}

// By one thread. `kept` are the sums of the walk; the label's standing is in head()->label_at.
__device__ __forceinline__ LossOutput finish_losses(const LossOptions& options, const LossRow& row,
                                                    const LossSums& sums,
                                                    const SoftTopPWalk& walked,
                                                    float raw_temperature) {
  LossOutput output = {};
  const double below = static_cast<double>(sums.max) - static_cast<double>(row.label_logit);
  const double raw = exponential(-below) / sums.raw_weight;

  const double first_temperature = static_cast<double>(row.temperature);
  const double first_distance = below / first_temperature;
  const double first_weight = exponential(-first_distance);
  const double first_total = first_weight + sums.other_weight;
  const double weight = options.megatron ? first_weight / first_total : raw;
  if (weight > 0.0) {
    const double lambda = sums.other_moment / first_total - first_distance;
    output.losses[0] =
        static_cast<float>(weight * cross_entropy(first_weight, sums.other_weight, first_distance));
    const bool flows = raw_temperature >= options.temperature_clamp;
    output.gradients[0] = flows ? static_cast<float>(weight * lambda / first_temperature) : 0.0f;
  }

  // A weight that is 0 in float32 has no loss, also where probability_eps is 0 and -ln q infinite.
  if (static_cast<float>(raw) > 0.0f) {
    const double temperature = static_cast<double>(row.top_p_temperature);
    const double distance = below / temperature;
    const double label_weight = exponential(-distance);
    const double total = sums.weight + (sums.apart ? label_weight : 0.0);
    const LabelToken label = {label_weight / total, sums.moment / total - distance,
                              LossMemory::head()->label_at, sums.apart};
    const SoftTopPLoss result =
        soft_top_p_loss(walked, label, temperature, options.mass_eps, options.probability_eps);
    output.losses[1] = static_cast<float>(raw * result.loss);
    const bool flows = raw_temperature >= options.top_p_temperature_clamp;
    output.gradients[1] = flows ? static_cast<float>(raw * result.temperature_gradient) : 0.0f;
    output.gradients[2] = static_cast<float>(raw * result.top_p_gradient);
  }
  return output;
}

}  // namespace autodeco::cuda
