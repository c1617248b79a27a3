// What the gradient of the logits takes from the order of the tokens: h = m - a U of every token,
// U the sum of u over the tail from the token on (soft_top_p.h). All but the sum over the whole
// tail is known when the walk has reached the token: h = share - a (sum of u over the tail), and
// the share of a token is m + a (sum of u before it).
#pragma once

#include "loss_walk.cuh"

namespace autodeco::cuda {

// Leaves the share of each item in a table: of heavy tokens by rank, ties in turn; of others the
// mean by mass. Over light tokens the share hardly changes, since m and a U decay alike.
template <typename Table>
class ShareItems {
 public:
  __device__ __forceinline__ ShareItems(Table& table, float* by_rank)
      : table_(table), by_rank_(by_rank) {}

  __device__ __forceinline__ void add(SoftTopPWalk& walk, const LossItem& item) {
    const TokenGroup& group = item.group;
    passed_ = walk.passed();
    holds_label_ = false;
    if (item.equal && item.count == 1) {
      if (item.label_rank != 0 || item.label_mass >= 0.0) {
        LossMemory::head()->label_at = walk.standing(group.probability, group.lambda);
      }
      walk.add(group.probability, group.lambda);
      kept_mass_ = walk.exclusive ? 0.0 : walk.tail * group.probability;
    } else {
      const HeadPart part = head_of(walk, item);
      holds_label_ = item.label_rank != 0 || item.label_mass >= 0.0;
      if (holds_label_) {
        note_label(walk, item, part);
        table_.gradient->label.first = passed_ + part.mass;
      }
      kept_mass_ = walk.add(group, part).kept_mass;
    }
  }

  __device__ __forceinline__ void after(int index, const LossItem& item, const SoftTopPWalk& walk) {
    LossHead* head = LossMemory::head();
    double tail_total;
    uint32_t count_total;
    const double tail_upto = block_inclusive_sum(walk.tail, head->scratch_double, &tail_total);
    const uint32_t upto = block_inclusive_sum(item.count, head->scratch32, &count_total);
    const double tail = tail_before_ + (tail_upto - walk.tail);
    const uint32_t rank = rank_before_ + (upto - item.count);
    tail_before_ += tail_total;
    rank_before_ += count_total;
    if (item.count == 0) return;
    if (table_.is_heavy(index, item, rank)) {
      keep_ties(item, walk, tail, table_.keep_heavy(index, rank));
    } else {
      table_.keep_light(index, static_cast<float>(mean_share(item.group, walk, tail)));
      if (holds_label_) keep_label(index, item.group, tail);
    }
  }

  // The label gets what makes the sum zero, so its own share must not be among the others'. By one
  // thread, after the walk.
  __device__ __forceinline__ void leave_label_out(const SoftTopPWalk& walk) {
    const LabelAmongOthers& label = table_.gradient->label;
    if (label.item < 0) return;
    const double a = walk.steepness;
    const double mass = LossMemory::head()->label_at.mass;
    const double decay = walk.decay(mass);
    double before = label.tail;  // sum of u that counts for the label
    if (mass > walk.top_p) {
      const double shared = slice_factor(a * label.probability) / a;
      const double left = walk.exclusive ? decay : walk.decay(mass - label.probability);
      before +=
          (walk.exclusive ? shared + label.probability : shared) * (walk.decay(label.first) - left);
      if (walk.exclusive) before += label.probability * decay;
    }
    const double own = label.probability * (decay + a * before);
    const double all = static_cast<double>(table_.light_share(label.item)) * label.mass;
    table_.keep_light(label.item,
                      static_cast<float>((all - own) / (label.mass - label.probability)));
  }

 private:
  // `walk` began at the item: its head and tail are those of the item.
  __device__ __forceinline__ double mean_share(const TokenGroup& group, const SoftTopPWalk& walk,
                                               double tail) const {
    const double a = walk.steepness;
    if (!(group.mass > 0.0)) return walk.decay(passed_) + a * tail;
    const double tail_mass = group.mass - walk.head;
    const double pulled = tail_mass * (tail + walk.tail) - kept_mass_;
    return (walk.head + walk.tail + a * pulled) / group.mass;
  }

  __device__ __forceinline__ void keep_label(int index, const TokenGroup& group, double tail) {
    // Others that weigh nothing get 0 whatever their share.
    if (!(group.mass > group.probability)) return;
    LabelAmongOthers& label = table_.gradient->label;
    label.item = index;
    label.mass = group.mass;
    label.probability = group.probability;
    label.tail = tail;
  }

  // In the order of their rank, which is that of their columns.
  __device__ __forceinline__ void keep_ties(const LossItem& item, const SoftTopPWalk& walk,
                                            double tail, uint32_t place) {
    const double a = walk.steepness;
    const double probability = item.group.probability;
    const uint32_t num_head = static_cast<uint32_t>(rint(walk.head / probability));
    const double first = passed_ + (num_head + (walk.exclusive ? 0.0 : 1.0)) * probability;
    const double step = item.count > 1 ? exponential(-a * probability) : 1.0;
    double decay = exponential(-a * (first - walk.top_p));
#pragma unroll 1
    for (uint32_t i = 0; i < item.count; ++i) {
      double share = 1.0 + a * tail;
      if (i >= num_head) {
        const double kept = probability * decay;
        share = decay + a * (walk.exclusive ? tail + kept : tail);
        tail += kept;
        decay *= step;
      }
      by_rank_[place + i] = static_cast<float>(share);
    }
  }

  Table& table_;
  float* by_rank_;
  double passed_ = 0.0;     // before the item
  double kept_mass_ = 0.0;  // GroupShare of the item
  bool holds_label_ = false;
  double tail_before_ = 0.0;
  uint32_t rank_before_ = 0;
};

}  // namespace autodeco::cuda
