// Maximum and sum of exp(l - maximum) of a range of rows, one read for each: what any sampler has
// to do, and what the others are measured against.
#pragma once

#include "autodeco/floor.h"
#include "block.h"
#include "exp_log.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

// Independent sums, so that an addition need not wait for the one before.
constexpr int kFloorLanes = 64;

template <typename Element>
void floor_row(const Row<Element>& row, float* output) {
  float max_lane[kFloorLanes];
  float sum_lane[kFloorLanes] = {};
  for (float& lane : max_lane) lane = -kInfinity;
  const int64_t whole = row.vocab / kFloorLanes * kFloorLanes;
  for (int64_t i = 0; i < whole; i += kFloorLanes) {
    for (int lane = 0; lane < kFloorLanes; ++lane) {
      const float logit = to_float(row.data[i + lane]);
      max_lane[lane] = max_lane[lane] > logit ? max_lane[lane] : logit;
    }
  }
  float max = -kInfinity;
  for (const float lane : max_lane) max = max > lane ? max : lane;
  for (int64_t i = whole; i < row.vocab; ++i) {
    const float logit = to_float(row.data[i]);
    max = max > logit ? max : logit;
  }
  for (int64_t i = 0; i < whole; i += kFloorLanes) {
    for (int lane = 0; lane < kFloorLanes; ++lane) {
      sum_lane[lane] += exp_nonpositive(to_float(row.data[i + lane]) - max);
    }
  }
  float sum = 0.0f;
  for (const float lane : sum_lane) sum += lane;
  for (int64_t i = whole; i < row.vocab; ++i) sum += exp_nonpositive(to_float(row.data[i]) - max);
  output[0] = max;
  output[1] = sum;
}

void floor_rows(const FloorArguments& arguments, int64_t begin, int64_t end) {
  for (int64_t row_index = begin; row_index < end; ++row_index) {
    with_row(arguments.dtype, arguments.logits, row_offset(arguments.layout, row_index),
             arguments.layout.vocab, [&](const auto& row) {
               floor_row(row, arguments.output + row_index * arguments.columns);
             });
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
