// What the bins do not tell: the heavy tokens one by one, and the tokens of the bin in which the
// running mass crosses P. Both are found by reading again the pieces that can hold such tokens.
#pragma once

#include "loss_bins.cuh"

namespace autodeco::cuda {

// Smallest order key whose logit is in `bin` or above, up to that of the maximum plus one.
__device__ __forceinline__ uint32_t first_key_of_bin(const BinGrid& grid, int bin, float max) {
  uint32_t low = order_key(-std::numeric_limits<float>::max());
  uint32_t high = order_key(max) + 1;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (grid.bin(logit_of_key(middle)) >= bin) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

constexpr uint32_t kEqualTokens = 1u << 31;  // beside the count of a settled bin

// Replaces what has been counted of every bin by what it means, relative to the maximum: weight and
// distance, in the words of the positions and squares. Double arithmetic is slow on many GPUs, and
// this is asked for several times. Leaves head()->totals.
__device__ AUTODECO_CALLED void settle_bins() {
  gpu::promise_num_threads<kLossThreads>();
  const LossRow& known = LossMemory::head()->known;
  const StreamedRow& streamed = LossMemory::head()->streamed;
  LossBins& bins = *LossMemory::bins();
  BinTotals totals;
  totals.top = {streamed.top, streamed.grid.exact_place(streamed.max)};
  totals.width = streamed.grid.width(known.top_p_temperature);
  const int label_bin = streamed.grid.bin(known.label_logit);
  double weight = 0.0;
  double moment = 0.0;
  double square = 0.0;
  for (int i = static_cast<int>(gpu::thread_index()); i < static_cast<int>(kLossBins);
       i += static_cast<int>(gpu::num_threads())) {
    const int bin = streamed.top - i;
    const uint32_t slot = slot_of(bin);
    BinContent content = bin_content(bins, bin, totals.top, totals.width);
    if (content.count == 0) continue;
    // Exact where the label is: dT is nearly 0 where most of the mass has the label's logit.
    if (bin == label_bin && content.equal) {
      const double below =
          static_cast<double>(streamed.max) - static_cast<double>(known.label_logit);
      content.distance = below / static_cast<double>(known.top_p_temperature);
      content.weight = content.count * exponential(-content.distance);
    }
    weight += content.weight;
    moment += content.weight * i;
    square += content.weight * i * i;
    const uint64_t weight_bits = std::bit_cast<uint64_t>(content.weight);
    const uint64_t distance_bits = std::bit_cast<uint64_t>(content.distance);
    bins.count[slot] = content.count | (content.equal ? kEqualTokens : 0);
    bins.position_low[slot] = static_cast<uint32_t>(weight_bits);
    bins.position_high[slot] = static_cast<uint32_t>(weight_bits >> 32);
    bins.square_low[slot] = static_cast<uint32_t>(distance_bits);
    bins.square_high[slot] = static_cast<uint32_t>(distance_bits >> 32);
  }
  weight = block_sum(weight);
  const double mean = block_sum(moment) / weight;
  const double variance = block_sum(square) / weight - mean * mean;
  totals.weight = weight + streamed.dust;
  totals.spread = variance > 0.0 ? sqrt(variance) : 0.0;
  keep(LossMemory::head()->totals, totals);
}

__device__ __forceinline__ BinContent settled_bin(int bin) {
  const LossBins& bins = *LossMemory::bins();
  const uint32_t slot = slot_of(bin);
  BinContent content = {};
  content.count = bins.count[slot] & ~kEqualTokens;
  if (content.count == 0) return content;
  content.equal = (bins.count[slot] & kEqualTokens) != 0;
  content.weight = std::bit_cast<double>(static_cast<uint64_t>(bins.position_high[slot]) << 32 |
                                         bins.position_low[slot]);
  content.distance = std::bit_cast<double>(static_cast<uint64_t>(bins.square_high[slot]) << 32 |
                                           bins.square_low[slot]);
  return content;
}

// The lowest bin whose tokens have at least this probability; streamed.top + 1 where there is none.
__device__ __forceinline__ int lowest_bin_of(double probability, const StreamedRow& streamed,
                                             const BinTotals& totals) {
  const double weight = probability * totals.weight;
  if (weight > 1.0) return streamed.top + 1;
  const double lowest = static_cast<double>(streamed.top) - static_cast<double>(kLossBins);
  const double bin = totals.top.place + logarithm(weight) / totals.width;
  return static_cast<int>(bin > lowest ? bin : lowest) + 1;
}

// Tokens in `bin` and above.
__device__ __forceinline__ uint32_t count_from(int bin, const StreamedRow& streamed) {
  uint32_t count = 0;
  for (int one = streamed.top - static_cast<int>(gpu::thread_index()); one >= bin;
       one -= static_cast<int>(gpu::num_threads())) {
    count += LossMemory::bins()->count[slot_of(one)] & ~kEqualTokens;
  }
  return block_sum(count);
}

// Leaves head()->cut. Ends with a barrier.
__device__ AUTODECO_CALLED void find_cut(double steepness, double top_p) {
  gpu::promise_num_threads<kLossThreads>();
  LossHead* head = LossMemory::head();
  const StreamedRow& streamed = head->streamed;
  const BinTotals& totals = head->totals;
  const int lowest = streamed.top - static_cast<int>(kLossBins) + 1;
  if (gpu::thread_index() == 0) head->cut = {kNoCrossing, lowest, 0.0};
  const int share = static_cast<int>(kLossBins / gpu::num_threads());
  const int first = streamed.top - static_cast<int>(gpu::thread_index()) * share;
  double weight = 0.0;
#pragma unroll 1
  for (int bin = first; bin > first - share; --bin) weight += settled_bin(bin).weight;
  double total;
  double before = block_inclusive_sum(weight, head->scratch_double, &total) - weight;
  const double decayed = top_p + kDecays / steepness;
#pragma unroll 1
  for (int bin = first; bin > first - share; --bin) {
    const double passed = before / totals.weight;
    const double bin_weight = settled_bin(bin).weight;
    before += bin_weight;
    const double mass = bin_weight / totals.weight;
    if (passed <= top_p && passed + mass > top_p) {
      head->cut.bin = bin;
      head->cut.room = (top_p - passed) / mass;
    }
    if (passed <= decayed && passed + mass > decayed) head->cut.last_bin = bin;
  }
  gpu::block_barrier();
}

// Smallest p of the tokens behind the cut that must be told apart. What
// tokens of a bin share is wrong by the decay from one to the next and by the width of the bin,
// which shows in dT where the whole row is not much wider.
__device__ __forceinline__ double lightest_behind_cut(const BinTotals& totals, double steepness) {
  constexpr double kWide = 32.0;  // bins
  const double narrow = totals.spread < kWide ? totals.spread / kWide : 1.0;
  return narrow * kLightDecay / steepness;
}

// How much finer bins should be: more than once where the row is flat and all that matters of it
// lies in a few of them, so that tokens of one bin differ by as much as tokens of the row; or in
// not so few, where the cut's has more tokens than are listed. Where nothing lies below those bins,
// just so much finer that the row still fits.
__device__ AUTODECO_CALLED float needed_fineness(double steepness) {
  const LossRow& known = LossMemory::head()->known;
  const StreamedRow& streamed = LossMemory::head()->streamed;
  const BinTotals& totals = LossMemory::head()->totals;
  if (totals.weight * kHeavy < 0.9) return 1.0f;
  const Cut& cut = LossMemory::head()->cut;
  const bool lists_cut =
      cut.bin >= lowest_bin_of(lightest_behind_cut(totals, steepness), streamed, totals);
  const bool dense = cut.bin != kNoCrossing && !settled_bin(cut.bin).equal &&
                     settled_bin(cut.bin).count > (lists_cut ? kHeavyCapacity : kGatherCapacity);
  const int most = dense ? static_cast<int>(kLossBins / 4) : kFewBins;
  const double span = (static_cast<double>(streamed.max) - static_cast<double>(streamed.lowest)) /
                      static_cast<double>(known.top_p_temperature) / totals.width;
  // Logits that differ by less than 2^-100 are taken for equal: their quarters may be subnormal.
  const bool one_bin = streamed.grid.bin(streamed.lowest) == streamed.top &&
                       streamed.max - streamed.lowest > 0x1p-100f;
  double inside = 0.0;
  bool equal = true;  // in every bin: finer ones would tell no more
  int bin = streamed.top;
#pragma unroll 1
  for (int few = 2; few <= most; few *= 2) {
    for (; bin > streamed.top - few; --bin) {
      const BinContent content = settled_bin(bin);
      equal &= content.count == 0 || content.equal;
      inside += content.weight;
    }
    if (inside > (1.0 - 1e-7) * totals.weight) {
      if (equal && !one_bin) return 1.0f;
      if (span < static_cast<double>(few)) return static_cast<float>((kLossBins - 2) / span);
      // Half of the finer bins, wherever in its bin the maximum lies.
      return static_cast<float>(kLossBins / 2) / static_cast<float>(few);
    }
  }
  return 1.0f;
}

// Which bins are to be listed.
__device__ __forceinline__ LossLists choose_lists(double steepness) {
  const Cut& cut = LossMemory::head()->cut;
  const StreamedRow& streamed = LossMemory::head()->streamed;
  const BinTotals& totals = LossMemory::head()->totals;
  LossLists lists;
  lists.heavy_bin = lowest_bin_of(kHeavy, streamed, totals);
  lists.cut_top = lists.heavy_bin - 1;
  lists.cut_end = lists.heavy_bin;
  if (cut.bin == kNoCrossing) return lists;
  if (cut.bin < lists.heavy_bin) {
    lists.cut_top = settled_bin(cut.bin).equal ? cut.bin - 1 : cut.bin;
    lists.cut_end = lists.cut_top + 1;
  }
  int low = lowest_bin_of(lightest_behind_cut(totals, steepness), streamed, totals);
  if (low < cut.last_bin) low = cut.last_bin;
  if (low >= lists.cut_end) return lists;
  const uint32_t before = count_from(lists.cut_end, streamed);
  const uint32_t room = kHeavyCapacity - count_from(lists.heavy_bin, streamed);
#pragma unroll 1
  while (low < lists.cut_end) {
    const int middle = low + (lists.cut_end - low) / 2;
    if (count_from(middle, streamed) - before <= room) {
      lists.cut_end = middle;
    } else {
      low = middle + 1;
    }
  }
  // Empty bins are no reason to read the row.
  if (count_from(lists.cut_end, streamed) == before) lists.cut_end = lists.cut_top + 1;
  return lists;
}

// What is to be read once more. Leaves head()->lists, and in head()->crossing the bin of the cut,
// if its tokens are neither listed nor equal.
__device__ AUTODECO_CALLED void plan_lists(double steepness) {
  gpu::promise_num_threads<kLossThreads>();
  const Cut& cut = LossMemory::head()->cut;
  const StreamedRow& streamed = LossMemory::head()->streamed;
  const LossLists lists = choose_lists(steepness);
  Crossing crossing = {};
  crossing.bin = kNoCrossing;
  if (cut.bin != kNoCrossing && !lists.has_bin(cut.bin) && !settled_bin(cut.bin).equal) {
    crossing.bin = cut.bin;
    crossing.count = settled_bin(cut.bin).count;
    crossing.lowest_key = first_key_of_bin(streamed.grid, cut.bin, streamed.max);
    crossing.highest_key = first_key_of_bin(streamed.grid, cut.bin + 1, streamed.max) - 1;
    crossing.highest_logit = logit_of_key(crossing.highest_key);
    crossing.room = cut.room;
    crossing.edge_count = kUnknownEdge;
  }
  if (gpu::thread_index() == 0) LossMemory::head()->lists = lists;
  keep(LossMemory::head()->crossing, crossing);
}

// Calls visit(logits) for eight logits of each lane, in every piece that holds a key of at least
// `lowest_key`; other lanes have -inf.
template <typename Element, typename Visit>
__device__ __forceinline__ void for_each_reaching(const Row<Element>& row, uint32_t lowest_key,
                                                  Visit visit) {
  const int half = static_cast<int>(gpu::lane_index()) / kLossPieceLanes;
  for (int segment = static_cast<int>(gpu::warp_index()); segment < row.num_segments;
       segment += num_warps()) {
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
      const int piece = segment * kLossPieces + v * (32 / kLossPieceLanes) + half;
      const bool reaches = LossMemory::piece_max()[piece] >= lowest_key >> 16;
      if (gpu::ballot(reaches) == 0) continue;
      float logits[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) logits[i] = -kInfinity;
      if (reaches) row.load_vector(column_of(segment, v, 0), logits);
      visit(logits);
    }
  }
}

__device__ __forceinline__ void push_key(uint32_t* list, uint32_t* size, uint32_t capacity,
                                         uint32_t key) {
  const uint32_t place = gpu::atomic_add(size, 1u);
  if (place < capacity) list[place] = key;
}

// The highest first. The list has room for a power of two. Ends with a barrier.
__device__ AUTODECO_CALLED void sort_descending(uint32_t* keys, uint32_t count) {
  gpu::promise_num_threads<kLossThreads>();
  uint32_t size = 1;
  while (size < count) size *= 2;
  for (uint32_t i = count + gpu::thread_index(); i < size; i += gpu::num_threads()) keys[i] = 0;
  gpu::block_barrier();
  for (uint32_t run = 2; run <= size; run *= 2) {
    for (uint32_t distance = run / 2; distance > 0; distance /= 2) {
      for (uint32_t pair = gpu::thread_index(); pair < size / 2; pair += gpu::num_threads()) {
        // The distance is a power of two.
        const uint32_t low = 2 * pair - (pair & (distance - 1));
        const uint32_t a = keys[low];
        const uint32_t b = keys[low + distance];
        const bool descends = (low & run) == 0;
        if ((a < b) == descends) {
          keys[low] = b;
          keys[low + distance] = a;
        }
      }
      gpu::block_barrier();
    }
  }
}

}  // namespace autodeco::cuda
