// Tokens of an interval of logits, listed in index order, and what lies above them.
#pragma once

#include "row_summary.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

constexpr int kListCapacity = 12288;

// Order keys low .. high, both included.
struct Interval {
  uint32_t low;
  uint32_t high;

  float low_logit() const { return logit_of_key(low); }

  // No logit has the key below that of zero. It decodes to -0.0, and zeros would not be above it.
  float high_logit() const { return logit_of_key(high == order_key(0.0f) - 1 ? high - 1 : high); }
};

struct CandidateList {
  static constexpr int kRoom = kListCapacity - kBlock;  // so many always fit

  int size = 0;
  bool complete = true;         // false: there was no room for all
  int blocks = 0;               // looked at before a full list was a reason to stop
  int block_count[kMaxBlocks];  // tokens of the interval in each block, listed or only counted
  alignas(64) float logits[kListCapacity + kLanes];
  alignas(64) int32_t columns[kListCapacity + kLanes];
  alignas(64) uint64_t masses[kListCapacity + kLanes];

  void clear() {
    size = 0;
    complete = true;
  }

  // For another block.
  bool has_room() const { return size <= kRoom; }

  // The tokens of the lanes in `chosen`, from `place` on; returns the place after them. Not through
  // `size`, which would have to be read again after every write.
  int write(int place, Floats values, Mask chosen, int column) {
    const uint32_t bits = bits_of(chosen);
#if defined(__AVX512F__)
    const __m512i index =
        _mm512_add_epi32(_mm512_set1_epi32(column),
                         _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    // Compressed in a register: compressing stores are slow on some processors.
    _mm512_storeu_ps(logits + place,
                     _mm512_maskz_compress_ps(chosen, reinterpret_cast<__m512>(values)));
    _mm512_storeu_si512(columns + place, _mm512_maskz_compress_epi32(chosen, index));
#else
    int next = place;
    for (uint32_t left = bits; left != 0; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      logits[next] = values[lane];
      columns[next] = column + lane;
      ++next;
    }
#endif
    return place + __builtin_popcount(bits);
  }

  void pad() {
    for (int i = size; i % kLanes != 0; ++i) logits[i] = -kInfinity;
  }

  void weigh(const Scaling& scaling, float max) {
    pad();
    for (int i = 0; i < size; i += kLanes) {
      const Floats weights = scaling.weights(load(logits + i), max);
      for (int lane = 0; lane < kLanes; ++lane) masses[i + lane] = fixed_mass(weights[lane]);
    }
  }

  uint64_t mass() const {
    uint64_t sum = 0;
    for (int i = 0; i < size; ++i) sum += masses[i];
    return sum;
  }

  // Drops all tokens for which keep(logit, column) is false, without a branch to mispredict.
  template <typename Keep>
  void shorten(Keep keep) {
    int kept = 0;
    for (int i = 0; i < size; ++i) {
      const bool keep_this = keep(logits[i], columns[i]);
      logits[kept] = logits[i];
      columns[kept] = columns[i];
      masses[kept] = masses[i];
      kept += keep_this;
    }
    size = kept;
    pad();
  }
};

enum class Measure { kCount, kMass };

struct Amount {
  uint64_t count = 0;
  uint64_t mass = 0;

  uint64_t of(Measure measure) const { return measure == Measure::kCount ? count : mass; }
  void add(const Amount& other) {
    count += other.count;
    mass += other.mass;
  }
};

// What a pass over the row found out about an interval.
struct Measured {
  Amount above;  // its mass also per block in the summary
  Amount inside;
};

inline uint64_t count_of(Ints counts) {
  int64_t count = 0;
  for (int lane = 0; lane < kLanes; ++lane) count += counts[lane];
  return static_cast<uint64_t>(count);
}

inline uint64_t mass_of_sum(float sum) {
  return static_cast<uint64_t>(static_cast<double>(sum) * kMassScale + 0.5);
}

// What of one block is above an interval and inside it.
struct BlockSums {
  Ints above = {};  // counts
  Ints inside = {};
  Floats weights_above = {};
  Floats weights_inside = {};
};

// Of a block with tokens above the interval, or with more inside than can be listed: lists or
// weighs what is inside, and weighs what is above.
template <bool kPlain, bool kList, typename Element>
BlockSums weigh_block(const Block<Element>& block, const Scaling& scaling, float max, float low,
                      float high, CandidateList& list) {
  constexpr int kChains = 4;
  int place = list.size;
  BlockSums sums[kChains];
  for (int i = 0; i < block.padded; i += kChains * kLanes) {
    for (int chain = 0; chain < kChains; ++chain) {
      const int column = i + chain * kLanes;
      const Floats logits = load(block.data + column);
      const Mask above = greater(logits, splat(high));
      const Mask inside = at_least(logits, splat(low)) & ~above;
      const Floats weights = scaling.weights<kPlain>(logits, max);
      count_where(above, sums[chain].above);
      add_where(above, sums[chain].weights_above, weights);
      if constexpr (kList) {
        place = list.write(place, logits, inside, block.begin + column);
      } else {
        count_where(inside, sums[chain].inside);
        add_where(inside, sums[chain].weights_inside, weights);
      }
    }
  }
  list.size = place;
  for (int chain = 1; chain < kChains; ++chain) {
    sums[0].above += sums[chain].above;
    sums[0].inside += sums[chain].inside;
    sums[0].weights_above += sums[chain].weights_above;
    sums[0].weights_inside += sums[chain].weights_inside;
  }
  return sums[0];
}

// Of a block with nothing above the interval: tokens near the maximum are few.
template <typename Element>
void list_block(const Block<Element>& block, float low, CandidateList& list) {
  for (int i = 0; i < block.padded; i += kLanes) {
    const Floats logits = load(block.data + i);
    const Mask inside = at_least(logits, splat(low));
    if (bits_of(inside) != 0) list.size = list.write(list.size, logits, inside, block.begin + i);
  }
}

template <typename Element>
uint64_t count_equal(const Block<Element>& block, float logit) {
  Ints ties = {};
  for (int i = 0; i < block.padded; i += kLanes) {
    count_where(equal(load(block.data + i), splat(logit)), ties);
  }
  return count_of(ties);
}

enum class WhenFull { kStop, kGoOn };

// Lists the tokens inside the interval, and adds up those above it and those that the list has no
// room for. Equal tokens are many or cheap to count, so an interval of one key is never listed.
// Blocks that have neither are skipped; nothing is weighed that need not be. What `measured` holds
// is incomplete where a full list made it stop.
template <typename Element>
Measured measure_interval(const Row<Element>& row, const Scaling& scaling, Interval interval,
                          WhenFull when_full, RowSummary& summary, CandidateList& list) {
  const float low = interval.low_logit();
  const float high = interval.high_logit();
  const float max = summary.max;
  const bool one_key = interval.low == interval.high;
  Measured measured;
  list.clear();
  list.complete = !one_key;
  with_plainness(scaling, [&](auto plain) {
    for (int number = 0; number < row.num_blocks(); ++number) {
      summary.block_mass[number] = 0;
      list.block_count[number] = 0;
      if (summary.block_max[number] < low) continue;
      if (!list.has_room()) {
        list.complete = false;
        list.blocks = number;
        if (when_full == WhenFull::kStop) return;
      }
      const bool listing = !one_key && list.has_room();
      const Block<Element> block = row.block(number);
      const bool any_above = summary.block_max[number] > high;
      const int listed_before = list.size;
      if (!any_above && listing) {
        list_block(block, low, list);
        list.block_count[number] = list.size - listed_before;
        continue;
      }
      if (!any_above && one_key) {
        const uint64_t ties = count_equal(block, low);
        list.block_count[number] = static_cast<int>(ties);
        measured.inside.count += ties;
        continue;
      }
      const BlockSums sums =
          listing ? weigh_block<plain(), true>(block, scaling, max, low, high, list)
                  : weigh_block<plain(), false>(block, scaling, max, low, high, list);
      summary.block_mass[number] = mass_of_sum(sum_of_lanes(sums.weights_above));
      measured.above.add({count_of(sums.above), summary.block_mass[number]});
      const uint64_t counted = count_of(sums.inside);
      measured.inside.add({counted, mass_of_sum(sum_of_lanes(sums.weights_inside))});
      list.block_count[number] = list.size - listed_before + static_cast<int>(counted);
    }
  });
  list.weigh(scaling, max);
  measured.inside.add({static_cast<uint64_t>(list.size), list.mass()});
  if (one_key) measured.inside.mass = measured.inside.count * scaling.mass(low, max);
  return measured;
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
