// One row of logits: its blocks, and how logits become weights.
#pragma once

#include <type_traits>

#include "autodeco/dtype.h"
#include "autodeco/fixed_mass.h"
#include "autodeco/order.h"
#include "exp2.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// What is read at a time: small enough for the first-level cache, large enough that what is kept
// per block is little. Sums run over a block in an order that depends on nothing but the block.
constexpr int kBlock = 512;
constexpr int kMaxBlocks = (1 << 20) / kBlock;
// Loops over a block advance by this many columns. The last block of a row is padded with -inf.
constexpr int kStep = 64;
static_assert(kBlock % kStep == 0 && kStep % kLanes == 0);

template <typename Element>
Element minus_infinity();
template <>
inline float minus_infinity<float>() {
  return -kInfinity;
}
template <>
inline BFloat16 minus_infinity<BFloat16>() {
  return {0xff80};
}
template <>
inline Float16 minus_infinity<Float16>() {
  return {0xfc00};
}

template <typename Element>
struct Block {
  const Element* data;
  int begin;   // column of data[0]
  int size;    // columns that exist
  int padded;  // columns that may be read: a multiple of kStep
};

// Columns [0, vocab) of one row; vocab is at most 2^20.
template <typename Element>
class Row {
 public:
  Row(const Element* data, int64_t vocab)
      : data_(data),
        vocab_(static_cast<int>(vocab)),
        num_blocks_((vocab_ + kBlock - 1) / kBlock),
        tail_size_(vocab_ % kStep == 0 ? 0 : vocab_ % kBlock) {
    if (tail_size_ == 0) return;
    for (int i = 0; i < tail_size_; ++i) tail_[i] = data[vocab_ - tail_size_ + i];
    for (int i = tail_size_; i % kStep != 0; ++i) tail_[i] = minus_infinity<Element>();
  }

  int vocab() const { return vocab_; }
  int num_blocks() const { return num_blocks_; }
  float operator[](int64_t column) const { return to_float(data_[column]); }

  Block<Element> block(int number) const {
    const int begin = number * kBlock;
    const int left = vocab_ - begin;
    const int size = left < kBlock ? left : kBlock;
    if (size == kBlock || tail_size_ == 0) return {data_ + begin, begin, size, size};
    return {tail_, begin, size, (size + kStep - 1) / kStep * kStep};
  }

 private:
  const Element* data_;
  int vocab_;
  int num_blocks_;
  int tail_size_;  // of a last block that is no multiple of kStep
  alignas(64) Element tail_[kBlock];
};

// Calls function(Row<Element>) with the element type that `dtype` names.
template <typename Function>
void with_row(DType dtype, const void* logits, int64_t offset, int64_t vocab, Function&& function) {
  switch (dtype) {
    case DType::kFloat32:
      function(Row<float>(static_cast<const float*>(logits) + offset, vocab));
      return;
    case DType::kBFloat16:
      function(Row<BFloat16>(static_cast<const BFloat16*>(logits) + offset, vocab));
      return;
    case DType::kFloat16:
      function(Row<Float16>(static_cast<const Float16*>(logits) + offset, vocab));
      return;
  }
}

// log2 of a weight, (l - reference) * log2(e) / T, within the 4 ulp that semantics.md allows. Where
// l - reference, or a block's sum of such differences, could overflow and matter (huge T), logits
// are first multiplied by 1/4; where 1/T could overflow (tiny T), differences are first multiplied
// by 2^64. It depends on T alone.
struct Scaling {
  float logit_factor = 1.0f;
  float difference_factor = 1.0f;
  float bits_per_unit;
  bool plain = true;

  explicit Scaling(float temperature) {
    if (temperature > 1e33f) {
      logit_factor = 0.25f;
      plain = false;
    } else if (temperature < 1e-30f) {
      difference_factor = 0x1p64f;
      plain = false;
    }
    const double divisor = static_cast<double>(temperature) * static_cast<double>(logit_factor) *
                           static_cast<double>(difference_factor);
    bits_per_unit = static_cast<float>(1.4426950408889634 / divisor);
  }

  template <bool kPlain>
  Floats exponents(Floats logits, float reference) const {
    if constexpr (kPlain) return (logits - reference) * bits_per_unit;
    return (logits * logit_factor - reference * logit_factor) * difference_factor * bits_per_unit;
  }

  template <bool kPlain>
  Floats weights(Floats logits, float reference) const {
    return exp2_nonpositive(exponents<kPlain>(logits, reference));
  }

  Floats exponents(Floats logits, float reference) const {
    return plain ? exponents<true>(logits, reference) : exponents<false>(logits, reference);
  }

  Floats weights(Floats logits, float reference) const {
    return plain ? weights<true>(logits, reference) : weights<false>(logits, reference);
  }

  // The same in double: not rounded to float.
  double precise_exponent(float logit, float reference) const {
    return (static_cast<double>(logit) - static_cast<double>(reference)) *
           static_cast<double>(bits_per_unit) * static_cast<double>(logit_factor) *
           static_cast<double>(difference_factor);
  }

  uint64_t mass(float logit, float reference) const {
    return fixed_mass(weights(splat(logit), reference)[0]);
  }
};

// Calls function(std::true_type or std::false_type) with whether the scaling is plain, so that
// loops need not ask.
template <typename Function>
void with_plainness(const Scaling& scaling, Function&& function) {
  if (scaling.plain) {
    function(std::bool_constant<true>());
  } else {
    function(std::bool_constant<false>());
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
