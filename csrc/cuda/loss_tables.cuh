// Where the shares of a row's tokens are kept and looked up by logit: in the tables that counted
// them. After finish() they are factors of the gradient.
#pragma once

#include "loss_counts.cuh"
#include "loss_rows.cuh"

namespace autodeco::cuda {

// Of a row that was read into bins. The words of a bin that hold its weight take its share, once
// the walk has read it.
struct BinTable {
  const StreamedRow& streamed;
  const LossLists& lists;
  LogitGradientHead* gradient;

  __device__ __forceinline__ static float& at(int bin) {
    return reinterpret_cast<float*>(LossMemory::bins()->position_low)[slot_of(bin)];
  }

  __device__ __forceinline__ bool is_heavy(int index, const LossItem&, uint32_t) const {
    return lists.place(index) >= 0;
  }
  // Where its shares belong.
  __device__ __forceinline__ uint32_t keep_heavy(int index, uint32_t) const {
    return static_cast<uint32_t>(lists.place(index));
  }
  __device__ __forceinline__ void keep_light(int index, float share) const {
    const int bin = lists.bin(index);
    (bin > lowest_bin() ? at(bin) : gradient->dust) = share;
  }
  __device__ __forceinline__ float light_share(int index) const {
    const int bin = lists.bin(index);
    return bin > lowest_bin() ? at(bin) : gradient->dust;
  }

  __device__ __forceinline__ uint32_t finish(const LogitFactors& factors) const {
    for (int bin = lists.heavy_bin - 1 - static_cast<int>(gpu::thread_index()); bin > lowest_bin();
         bin -= static_cast<int>(gpu::num_threads())) {
      if (lists.has_bin(bin) || LossMemory::bins()->count[slot_of(bin)] == 0) continue;
      at(bin) = factors.of_h(static_cast<double>(at(bin)) - factors.tail);
    }
    if (gpu::thread_index() == 0) {
      const uint32_t* keys = LossMemory::heavy_keys();
      if (lists.num_heavy != 0) {
        gradient->lowest_heavy_logit = logit_of_key(keys[lists.num_heavy - 1]);
      }
      if (lists.num_listed > lists.num_heavy) {
        gradient->highest_cut_logit = logit_of_key(keys[lists.num_heavy]);
        gradient->lowest_cut_logit = logit_of_key(keys[lists.num_listed - 1]);
      }
    }
    return lists.num_listed;
  }

  __device__ __forceinline__ float factor(float logit) const {
    const int bin = streamed.grid.bin(logit);
    return bin > lowest_bin() ? at(bin) : gradient->dust;
  }
  // How many listed tokens have a larger logit than this listed one.
  __device__ __forceinline__ uint32_t first_rank(float logit) const {
    const uint32_t* keys = LossMemory::heavy_keys();
    const uint32_t key = order_key(logit);
    uint32_t low = 0;
    uint32_t high = lists.num_listed;
    while (low < high) {
      const uint32_t middle = (low + high) / 2;
      if (keys[middle] > key) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  __device__ __forceinline__ int lowest_bin() const {
    return streamed.top - static_cast<int>(kLossBins);
  }
};

// Of a row whose values were counted. The count of a value becomes its share, that of a heavy one
// how many tokens have a larger logit.
struct ValueTable {
  int num_values;
  double lowest_lambda;  // of a heavy token
  LogitGradientHead* gradient;
  uint32_t num_heavy_values = 0;  // of this thread
  uint32_t num_heavy = 0;

  __device__ __forceinline__ ValueTable(int values, const LossSums& sums, double label_weight,
                                        double steepness, LogitGradientHead* head)
      : num_values(values), gradient(head) {
    // The steeper the edge, the lighter; the list takes no more than it holds.
    double heavy = kLightDecay / steepness;
    if (heavy > kHeavy) heavy = kHeavy;
    if (heavy < 0x1p-30) heavy = 0x1p-30;
    const double total = sums.weight + label_weight;
    lowest_lambda = sums.moment / total + logarithm(heavy * total);
  }

  __device__ __forceinline__ static uint32_t& at(int index) {
    return LossMemory::value_counts()[LossMemory::occurring()[index]];
  }

  __device__ __forceinline__ bool is_heavy(int, const LossItem& item, uint32_t rank) const {
    return item.group.lambda >= lowest_lambda && rank + item.count <= kHeavyCapacity;
  }
  __device__ __forceinline__ uint32_t keep_heavy(int index, uint32_t rank) {
    num_heavy += at(index);
    ++num_heavy_values;
    at(index) = rank;
    return rank;
  }
  __device__ __forceinline__ void keep_light(int index, float share) const {
    at(index) = std::bit_cast<uint32_t>(share);
  }
  __device__ __forceinline__ float light_share(int index) const {
    return std::bit_cast<float>(at(index));
  }

  __device__ __forceinline__ uint32_t finish(const LogitFactors& factors) const {
    const int heavy_values = static_cast<int>(block_sum(num_heavy_values));
    for (int i = heavy_values + static_cast<int>(gpu::thread_index()); i < num_values;
         i += static_cast<int>(gpu::num_threads())) {
      const double h = static_cast<double>(std::bit_cast<float>(at(i))) - factors.tail;
      at(i) = std::bit_cast<uint32_t>(factors.of_h(h));
    }
    if (heavy_values != 0 && gpu::thread_index() == 0) {
      gradient->lowest_heavy_logit = value_at_place(LossMemory::occurring()[heavy_values - 1]);
    }
    return block_sum(num_heavy);
  }

  __device__ __forceinline__ float factor(float logit) const {
    const int place = value_place(logit);
    // Without a place it weighs nothing (counts_suffice).
    if (place < 0) return gradient->dust;
    return std::bit_cast<float>(LossMemory::value_counts()[place]);
  }
  __device__ __forceinline__ uint32_t first_rank(float logit) const {
    return LossMemory::value_counts()[value_place(logit)];
  }
};

}  // namespace autodeco::cuda
