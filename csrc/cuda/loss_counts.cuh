// A bfloat16 row has few values: one read counts each of them, in shared memory, and everything
// else follows from the counts. Equal tokens are a group in closed form, so nothing is approximate.
#pragma once

#include "loss_walk.cuh"

namespace autodeco::cuda {

constexpr int kNoValue = -1;      // -inf
constexpr int kUncountable = -2;  // NaN, +inf, or too large or small for the table
constexpr int kBelowRange = -3;   // finite and at most -256

// Places descend: 0 is the largest value.
__device__ __forceinline__ int value_place(float logit) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit) >> 16;
  const uint32_t magnitude = bits & 0x7fffu;
  const bool negative = bits != magnitude;
  const int distance = static_cast<int>(magnitude) - static_cast<int>(kFirstMagnitude) + 1;
  if (distance >= 1 && distance <= kMagnitudes) {  // nearly always
    return negative ? kMagnitudes + distance : kMagnitudes - distance;
  }
  if (magnitude == 0) return kMagnitudes;
  if (distance < 1 || !negative || magnitude > 0x7f80u) return kUncountable;
  return magnitude == 0x7f80u ? kNoValue : kBelowRange;
}

// How many of the logits that a lane holds equal the label's and are not behind it.
__device__ __forceinline__ uint32_t count_label_ties(const float* logits, int segment,
                                                     const LossRow& known) {
  uint32_t count = 0;
  if (segment > known.label / kSegment) return count;
  const bool all = segment < known.label / kSegment;
  const float label_logit = known.label_logit;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      count += logits[v * kVector + i] == label_logit &&
               (all || column_of(segment, v, i) <= known.label);
    }
  }
  return count;
}

__device__ __forceinline__ float value_at_place(int place) {
  if (place == kMagnitudes) return 0.0f;
  const int distance = place < kMagnitudes ? kMagnitudes - place : place - kMagnitudes;
  const uint32_t bits = static_cast<uint32_t>(distance - 1) + kFirstMagnitude;
  return std::bit_cast<float>(bits << 16 | (place > kMagnitudes ? 0x80000000u : 0u));
}

// The counting read. Leaves the counts in value_counts(); returns the label's rank among the tokens
// with its logit. Ends with a barrier.
template <typename Element>
__device__ __forceinline__ uint32_t count_values(const Row<Element>& row, const LossRow& known) {
  LossHead* head = LossMemory::head();
  uint32_t* counts = LossMemory::value_counts();
  const int threads = static_cast<int>(gpu::num_threads());
  for (int i = static_cast<int>(gpu::thread_index()); i < kLossValues; i += threads) counts[i] = 0;
  if (gpu::thread_index() == 0) {
    head->uncountable = 0;
    head->below_range = 0;
  }
  gpu::block_barrier();
  // A count that is kept back while one token after the other has the same value: a row of ties
  // would otherwise queue at one address.
  int pending = 0;
  uint32_t pending_count = 0;
  uint32_t uncountable = 0;
  uint32_t below_range = 0;
  uint32_t label_rank = 0;
  for (int segment = static_cast<int>(gpu::warp_index()); segment < row.num_segments;
       segment += threads / 32) {
    float logits[kLaneLogits];
    row.load_segment(segment, logits);
    label_rank += count_label_ties(logits, segment, known);
#pragma unroll
    for (int i = 0; i < kLaneLogits; ++i) {
      const int place = value_place(logits[i]);
      if (place == pending) {
        ++pending_count;
        continue;
      }
      if (place < 0) {
        uncountable |= place == kUncountable;
        below_range |= place == kBelowRange;
        continue;
      }
      if (pending_count != 0) gpu::atomic_add(&counts[pending], pending_count);
      pending = place;
      pending_count = 1;
    }
  }
  if (pending_count != 0) gpu::atomic_add(&counts[pending], pending_count);
  if (uncountable != 0) gpu::atomic_add(&head->uncountable, 1u);
  if (below_range != 0) gpu::atomic_add(&head->below_range, 1u);
  return block_sum(label_rank);
}

// Lists the values that occur, in descending order; returns how many. Ends with a barrier.
__device__ __forceinline__ int list_values() {
  const int share = (kLossValues + static_cast<int>(gpu::num_threads()) - 1) /
                    static_cast<int>(gpu::num_threads());
  const int begin = static_cast<int>(gpu::thread_index()) * share;
  const int end = begin + share < kLossValues ? begin + share : kLossValues;
  const uint32_t* counts = LossMemory::value_counts();
  uint32_t mine = 0;
  for (int place = begin; place < end; ++place) mine += counts[place] != 0;
  uint32_t total;
  uint32_t index = block_inclusive_sum(mine, LossMemory::head()->scratch32, &total) - mine;
  for (int place = begin; place < end; ++place) {
    if (counts[place] != 0) LossMemory::occurring()[index++] = static_cast<uint16_t>(place);
  }
  gpu::block_barrier();
  return static_cast<int>(total);
}

// Leaves head()->sums.
__device__ __forceinline__ void sum_values(int num_values, const LossRow& known,
                                           uint32_t label_rank) {
  LossSums sums = {};
  sums.max = value_at_place(LossMemory::occurring()[0]);
  sums.apart = true;
  sums.label_rank = label_rank;
  const double temperature = static_cast<double>(known.top_p_temperature);
  const double other_temperature = static_cast<double>(known.temperature);
  for (int i = static_cast<int>(gpu::thread_index()); i < num_values;
       i += static_cast<int>(gpu::num_threads())) {
    const int place = LossMemory::occurring()[i];
    const double count = static_cast<double>(LossMemory::value_counts()[place]);
    const float logit = value_at_place(place);
    const double others = count - (logit == known.label_logit ? 1.0 : 0.0);
    const double below = static_cast<double>(sums.max) - static_cast<double>(logit);
    const double weight = exponential(-below / temperature);
    sums.weight += others * weight;
    sums.moment += count * weight * (below / temperature);
    sums.raw_weight += count * exponential(-below);
    if (other_temperature != temperature) {
      const double other_weight = exponential(-below / other_temperature);
      sums.other_weight += others * other_weight;
      sums.other_moment += count * other_weight * (below / other_temperature);
    }
  }
  sums.weight = block_sum(sums.weight);
  sums.moment = block_sum(sums.moment);
  sums.raw_weight = block_sum(sums.raw_weight);
  if (other_temperature == temperature) {
    sums.other_weight = sums.weight;
    sums.other_moment = sums.moment;
  } else {
    sums.other_weight = block_sum(sums.other_weight);
    sums.other_moment = block_sum(sums.other_moment);
  }
  keep(LossMemory::head()->sums, sums);
}

// Whether the counts say everything about the row: every token has a place, or is so low that it
// weighs less than e^-60 of the largest.
__device__ __forceinline__ bool counts_suffice(int num_values, const LossRow& known) {
  const LossHead* head = LossMemory::head();
  if (head->uncountable != 0 || num_values == 0) return false;
  if (head->below_range == 0) return true;
  const float room = value_at_place(LossMemory::occurring()[0]) + 256.0f;
  const bool label_is_low = known.label_logit <= -256.0f && known.label_logit > -kInfinity;
  return !label_is_low && room > 60.0f && room > 60.0f * known.temperature &&
         room > 60.0f * known.top_p_temperature;
}

template <typename Items>
__device__ __forceinline__ SoftTopPWalk walk_values(int num_values, const SoftTopPWalk& start,
                                                    const LossRow& known, const LossSums& sums,
                                                    Items& items) {
  const double temperature = static_cast<double>(known.top_p_temperature);
  const double max = static_cast<double>(sums.max);
  const double label_weight =
      exponential(-(max - static_cast<double>(known.label_logit)) / temperature);
  const double inverse = 1.0 / (sums.weight + label_weight);
  const double mean = sums.moment * inverse;
  const auto item_of = [&](int index) {
    const int place = LossMemory::occurring()[index];
    const float logit = value_at_place(place);
    const double distance = (max - static_cast<double>(logit)) / temperature;
    LossItem item;
    item.count = LossMemory::value_counts()[place];
    item.group.probability = exponential(-distance) * inverse;
    item.group.lambda = mean - distance;
    item.group.mass = item.count * item.group.probability;
    item.label_rank = logit == known.label_logit ? sums.label_rank : 0;
    return item;
  };
  return walk_items(num_values, start, item_of, items);
}

}  // namespace autodeco::cuda
