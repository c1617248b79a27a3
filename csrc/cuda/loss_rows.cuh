// Sums and walk of a row that was read into bins.
#pragma once

#include "loss_crossing.cuh"

namespace autodeco::cuda {

// The reads after the first, and what they are for. Leaves head()->lists.
template <typename Element>
__device__ __forceinline__ void list_tokens(const Row<Element>& row, const LossRow& known,
                                            const StreamedRow& streamed, int most_narrowings) {
  LossHead* head = LossMemory::head();
  LossLists lists = head->lists;
  const bool crosses = head->crossing.bin != kNoCrossing;
  if (crosses) {
    const CrossingToken token(head->crossing.highest_logit, known.top_p_temperature, streamed.grid);
#pragma unroll 1
    while (most_narrowings > 0 && head->crossing.count > kGatherCapacity &&
           head->crossing.lowest_key != head->crossing.highest_key) {
      narrow_crossing(row, token);
      --most_narrowings;
    }
  }
  const bool gathers = crosses && head->crossing.count <= kGatherCapacity;
  const bool has_heavy = lists.heavy_bin <= streamed.top;
  const uint32_t heavy_key =
      has_heavy ? first_key_of_bin(streamed.grid, lists.heavy_bin, streamed.max) : 0xffffffffu;
  // Below the heavy ones: the tokens behind the cut for the same list, or those of its bin.
  const bool has_tail = lists.cut_end <= lists.cut_top;
  const uint32_t lowest_key = has_tail
                                  ? first_key_of_bin(streamed.grid, lists.cut_end, streamed.max)
                              : gathers ? head->crossing.lowest_key
                                        : heavy_key;
  const uint32_t highest_key =
      has_tail  ? first_key_of_bin(streamed.grid, lists.cut_top + 1, streamed.max) - 1
      : gathers ? head->crossing.highest_key
                : 0;
  if (gpu::thread_index() == 0) {
    head->num_listed = 0;
    head->num_gathered = 0;
  }
  gpu::block_barrier();
  if (gathers || has_heavy || has_tail) {
    for_each_reaching(row, lowest_key, [&](const float* logits) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const uint32_t key = order_key(logits[i]);
        const bool inside = key >= lowest_key && key <= highest_key;
        if (key >= heavy_key || (inside && has_tail)) {
          push_key(LossMemory::heavy_keys(), &head->num_listed, kHeavyCapacity, key);
        } else if (inside) {
          push_key(LossMemory::gathered_keys(), &head->num_gathered, kGatherCapacity, key);
        }
      }
    });
  }
  gpu::block_barrier();
  lists.num_listed = head->num_listed < kHeavyCapacity ? head->num_listed : kHeavyCapacity;
  sort_descending(LossMemory::heavy_keys(), lists.num_listed);
  const uint32_t label_key = order_key(known.label_logit);
  uint32_t heavy = 0;
  uint32_t above = 0;
  for (uint32_t i = gpu::thread_index(); i < lists.num_listed; i += gpu::num_threads()) {
    heavy += LossMemory::heavy_keys()[i] >= heavy_key;
    above += LossMemory::heavy_keys()[i] > label_key;
  }
  lists.num_heavy = block_sum(heavy);
  above = block_sum(above);
  const bool listed =
      label_key >= heavy_key || (has_tail && label_key >= lowest_key && label_key <= highest_key);
  lists.label_index = listed ? static_cast<int>(above + streamed.label_rank) - 1 : -1;
  keep(head->lists, lists);
}

__device__ __forceinline__ double distance_of_key(uint32_t key, float max, double temperature) {
  return (static_cast<double>(max) - static_cast<double>(logit_of_key(key))) / temperature;
}

// Leaves head()->sums, and what room P has in the crossing bin by them.
__device__ __forceinline__ void sum_listed(const LossRow& known, const StreamedRow& streamed,
                                           const LossLists& lists) {
  LossHead* head = LossMemory::head();
  LossSums sums = {};
  double above = 0.0;  // the crossing bin
  sums.max = streamed.max;
  sums.raw_weight = streamed.raw;
  sums.label_rank = streamed.label_rank;
  sums.apart = lists.label_index >= 0;
  const double temperature = static_cast<double>(known.top_p_temperature);
  const int threads = static_cast<int>(gpu::num_threads());
  for (int i = static_cast<int>(gpu::thread_index()); i < static_cast<int>(lists.num_listed);
       i += threads) {
    const double distance = distance_of_key(LossMemory::heavy_keys()[i], streamed.max, temperature);
    const double weight = exponential(-distance);
    if (i != lists.label_index) sums.weight += weight;
    sums.moment += weight * distance;
    above += weight;
  }
  const int lowest = streamed.top - static_cast<int>(kLossBins);
  for (int bin = lists.heavy_bin - 1 - static_cast<int>(gpu::thread_index()); bin > lowest;
       bin -= threads) {
    if (lists.has_bin(bin)) continue;
    const BinContent content = settled_bin(bin);
    sums.weight += content.weight;
    sums.moment += content.weight * content.distance;
    if (bin > head->crossing.bin) above += content.weight;
  }
  sums.weight = block_sum(sums.weight) + streamed.dust;
  sums.moment = block_sum(sums.moment) + streamed.dust_moment;
  above = block_sum(above);
  if (gpu::thread_index() == 0 && head->crossing.bin != kNoCrossing) {
    const double label_weight =
        sums.apart
            ? exponential(-distance_of_key(order_key(known.label_logit), streamed.max, temperature))
            : 0.0;
    const double mass = static_cast<double>(known.top_p) * (sums.weight + label_weight) - above;
    const double room = mass / settled_bin(head->crossing.bin).weight;
    head->crossing.room = room > 0.0 ? (room < 1.0 ? room : 1.0) : 0.0;
  }
  keep(head->sums, sums);
}

// Divides the crossing bin between head and tail. Ends with a barrier.
__device__ __forceinline__ void split_crossing(const LossRow& known, const BinGrid& grid,
                                               bool exclusive) {
  const Crossing& crossing = LossMemory::head()->crossing;
  if (crossing.bin == kNoCrossing) return;
  if (crossing.count <= kGatherCapacity) {
    split_gathered(CrossingToken(crossing.highest_logit, known.top_p_temperature, grid), exclusive);
  } else if (gpu::thread_index() == 0) {
    split_counted(exclusive);
  }
  gpu::block_barrier();
}

// On which side of the cut a label of the crossing bin is.
__device__ __forceinline__ CutSide side_of_label(const Crossing& crossing, uint32_t label_key,
                                                 uint32_t label_rank) {
  if (crossing.edge_count == kUnknownEdge) {
    if (label_key > crossing.highest_key) return CutSide::kHead;
    return label_key < crossing.lowest_key ? CutSide::kTail : CutSide::kUnknown;
  }
  const bool is_head = label_key == crossing.edge_key ? label_rank <= crossing.edge_count
                                                      : label_key > crossing.edge_key;
  return is_head ? CutSide::kHead : CutSide::kTail;
}

template <typename Items>
__device__ __forceinline__ SoftTopPWalk walk_listed(const SoftTopPWalk& start, const LossRow& known,
                                                    const StreamedRow& streamed,
                                                    const LossLists& lists, const LossSums& sums,
                                                    Items& items) {
  LossHead* head = LossMemory::head();
  const double temperature = static_cast<double>(known.top_p_temperature);
  const double label_distance =
      (static_cast<double>(streamed.max) - static_cast<double>(known.label_logit)) / temperature;
  const double label_weight = exponential(-label_distance);
  const double inverse = 1.0 / (sums.weight + (sums.apart ? label_weight : 0.0));
  const double mean = sums.moment * inverse;
  // Where no item holds the label, it is too light to be one of the dust.
  if (gpu::thread_index() == 0) head->label_at = {1.0, 0.0};
  const auto hold_label = [&](LossItem& item) {
    double mass = streamed.before * inverse;
    item.label_slope = mean * mass - streamed.before_moment * inverse;
    if (start.exclusive && !item.equal) {
      const double probability = label_weight * inverse;
      mass = mass > probability ? mass - probability : 0.0;
      item.label_slope -= probability * (mean - label_distance);
    }
    item.label_mass = mass < item.group.mass ? mass : item.group.mass;
  };
  const int dust_bin = streamed.top - static_cast<int>(kLossBins);
  const int label_bin = streamed.grid.bin(known.label_logit);
  const double width = streamed.grid.width(known.top_p_temperature);
  const auto item_of = [&](int index) {
    LossItem item;
    const int place = lists.place(index);
    if (place >= 0) {
      const double distance =
          distance_of_key(LossMemory::heavy_keys()[place], streamed.max, temperature);
      const double probability = exponential(-distance) * inverse;
      item.count = 1;
      item.group = {probability, mean - distance, probability};
      item.label_rank = place == lists.label_index;
      return item;
    }
    const int bin = lists.bin(index);
    const Cut& cut = head->cut;
    // The sums of the walk are rounded otherwise than those that found the cut.
    if (cut.bin != kNoCrossing && bin != cut.bin) item.label_side = side_if(bin > cut.bin);
    if (bin == dust_bin) {
      item.equal = false;
      item.count = streamed.dust > 0.0;
      if (item.count != 0) {
        item.group = {streamed.dust * inverse, mean - streamed.dust_moment / streamed.dust, 0.0};
        if (item.label_side != CutSide::kUnknown) item.head_share = 0.0;
        if (label_bin <= dust_bin) hold_label(item);
      }
      return item;
    }
    const BinContent content = settled_bin(bin);
    if (content.count == 0) return item;
    item.count = content.count;
    item.equal = content.equal;
    const double mass = content.weight * inverse;
    item.group = {mass, mean - content.distance, mass / content.count};
    if (bin == label_bin) hold_label(item);
    if (item.label_side != CutSide::kUnknown) {
      item.head_share = bin > cut.bin;
      item.head_lambda = item.group.lambda;
    } else if (bin == head->crossing.bin && head->crossing.bin_mass != 0) {
      const Crossing& crossing = head->crossing;
      const double head_mass = static_cast<double>(crossing.head_mass);
      item.head_share = head_mass / static_cast<double>(crossing.bin_mass);
      const double distance =
          head_mass > 0.0 ? static_cast<double>(crossing.head_moment) / head_mass * width : 0.0;
      item.head_lambda =
          mean - distance -
          distance_of_key(order_key(crossing.highest_logit), streamed.max, temperature);
      item.label_side = side_of_label(crossing, order_key(known.label_logit), streamed.label_rank);
    }
    return item;
  };
  return walk_items(lists.num_items(dust_bin), start, item_of, items);
}

// Fills in the sums at the temperature of the temperature loss. By one thread.
__device__ __forceinline__ void sum_other(const LossRow& known, const StreamedRow& streamed,
                                          LossSums& sums) {
  const double below = static_cast<double>(streamed.max) - static_cast<double>(known.label_logit);
  const double distance = below / static_cast<double>(known.temperature);
  const double label_weight = exponential(-distance);
  if (known.temperature == known.top_p_temperature) {
    sums.other_weight = sums.weight - (sums.apart ? 0.0 : label_weight);
    sums.other_moment = sums.moment;
  } else {
    sums.other_weight = streamed.other;
    sums.other_moment =
        streamed.other_moment + (label_weight > 0.0 ? label_weight * distance : 0.0);
  }
}

}  // namespace autodeco::cuda
