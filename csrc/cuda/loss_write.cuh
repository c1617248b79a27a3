// The read of a row that writes the gradient of its logits.
#pragma once

#include "loss_tables.cuh"
#include "store.cuh"

namespace autodeco::cuda {

template <typename Element>
__device__ __forceinline__ void fill_output(Element* output, int columns, float value) {
  const bool aligned = takes_vectors(output);
  float values[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] = value;
  for (int begin = static_cast<int>(gpu::thread_index()) * kVector; begin < columns;
       begin += static_cast<int>(gpu::num_threads()) * kVector) {
    store_vector(output + begin, columns - begin, aligned, values);
  }
}

// The gradient at one token, from its factor.
struct TokenGradient {
  float max_quarter;  // of the largest logit, negated
  QuarterBits bits;
  QuarterBits other_bits;
  float label_logit;
  int label;
  float edge;
  float other;

  __device__ __forceinline__ TokenGradient(const LossRow& known, float max,
                                           const LogitFactors& factors)
      : max_quarter(-0.25f * max),
        bits(known.top_p_temperature),
        other_bits(known.temperature),
        label_logit(known.label_logit),
        label(known.label),
        edge(factors.edge),
        other(factors.other) {}

  __device__ __forceinline__ float at(float logit, int column, float factor) const {
    const float difference = fmaf(logit, 0.25f, max_quarter);
    const bool counts = logit > label_logit || (logit == label_logit && column < label);
    float value = gpu::exp2_approximate(bits.of(difference)) * (counts ? factor + edge : factor);
    if (other != 0.0f) value += gpu::exp2_approximate(other_bits.of(difference)) * other;
    return value;
  }
};

// Heavy tokens are listed as words that sort by rank, the highest first.
constexpr int kColumnBits = 20;
constexpr uint32_t kColumnMask = (1u << kColumnBits) - 1;
static_assert(kMaxSegments * kSegment <= 1 << kColumnBits);
static_assert(kHeavyCapacity <= 1u << (31 - kColumnBits));

__device__ __forceinline__ uint32_t heavy_word(uint32_t first_rank, int column) {
  return ~(first_rank << kColumnBits | static_cast<uint32_t>(column));
}
__device__ __forceinline__ int column_of_word(uint32_t word) {
  return static_cast<int>(~word & kColumnMask);
}

// The tokens that write_gradient() listed. Returns the sum of what this thread wrote.
template <typename Element>
__device__ __forceinline__ double write_heavy(const Row<Element>& row, const TokenGradient& token,
                                              const LogitGradientHead* gradient, Element* output) {
  uint32_t* heavy = LossMemory::gathered_keys();
  const uint32_t pushed = gradient->num_pushed;
  const uint32_t num_heavy = pushed < kHeavyCapacity ? pushed : kHeavyCapacity;
  sort_descending(heavy, num_heavy);
  double sum = 0.0;
  for (uint32_t rank = gpu::thread_index(); rank < num_heavy; rank += gpu::num_threads()) {
    const int column = column_of_word(heavy[rank]);
    if (column == token.label) continue;
    const float value = token.at(row.load_one(column), column, gradient->by_rank[rank]);
    sum += static_cast<double>(value);
    output[column] = rounded<Element>(value);
  }
  return sum;
}

// Writes the row. `table` and `gradient` are finished.
template <typename Element, typename Table>
__device__ __forceinline__ void write_gradient(const Row<Element>& row, const LossRow& known,
                                               float max, const Table& table,
                                               LogitGradientHead* gradient, Element* output) {
  const TokenGradient token(known, max, gradient->factors);
  const float lowest_listed_logit = gradient->lowest_listed_logit();
  const bool aligned = takes_vectors(output);
  double others = 0.0;  // than the label
  for (int segment = static_cast<int>(gpu::warp_index()); segment < row.num_segments;
       segment += num_warps()) {
    float logits[kLaneLogits];
    row.load_segment(segment, logits);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int begin = column_of(segment, v, 0);
      float values[kVector];
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const float logit = logits[v * kVector + i];
        const int column = begin + i;
        values[i] = 0.0f;
        if (logit >= lowest_listed_logit && gradient->is_listed(logit)) {
          push_key(LossMemory::gathered_keys(), &gradient->num_pushed, kHeavyCapacity,
                   heavy_word(table.first_rank(logit), column));
        } else if (logit > -kInfinity && column != token.label) {
          values[i] = token.at(logit, column, table.factor(logit));
          sum += values[i];
        }
      }
      others += static_cast<double>(sum);
      if (begin < row.columns) store_vector(output + begin, row.columns - begin, aligned, values);
    }
  }
  gpu::block_barrier();
  others = block_sum(others + write_heavy(row, token, gradient, output));
  if (gpu::thread_index() == 0) output[token.label] = rounded<Element>(static_cast<float>(-others));
}

}  // namespace autodeco::cuda
