// First pass over a row: its maximum, whether it can be sampled, and how its logits are scaled.
#pragma once

#include "autodeco/filters.h"
#include "autodeco/fixed_mass.h"
#include "autodeco/row_status.h"
#include "block.h"
#include "exp_log.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

struct RowScan {
  RowStatus status = RowStatus::kValid;
  float max = 0.0f;
  float min_finite = 0.0f;
  int64_t argmax = 0;  // lowest index among equals
  int64_t num_finite = 0;
};

template <typename Element>
RowScan scan_row(const Row<Element>& row) {
  float max_lane[kLanes];
  float min_lane[kLanes];
  int32_t nan_lane[kLanes] = {};
  int32_t infinity_lane[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    max_lane[lane] = -kInfinity;
    min_lane[lane] = kInfinity;
  }
  RowScan scan;
  int64_t max_block = 0;
  float running_max = -kInfinity;
  for_each_block(row, [&](const Block& block) {
    int32_t finite_lane[kLanes] = {};
    for (int i = 0; i < block.padded; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const float x = block.logits[i + lane];
        const bool finite = x > -kInfinity;
        const float low = finite ? x : kInfinity;
        max_lane[lane] = max_lane[lane] > x ? max_lane[lane] : x;
        min_lane[lane] = min_lane[lane] < low ? min_lane[lane] : low;
        nan_lane[lane] |= x != x;
        infinity_lane[lane] |= x == kInfinity;
        finite_lane[lane] += finite;
      }
    }
    float block_max = -kInfinity;
    for (int lane = 0; lane < kLanes; ++lane) {
      block_max = max_lane[lane] > block_max ? max_lane[lane] : block_max;
      scan.num_finite += finite_lane[lane];
    }
    if (block_max > running_max) {
      running_max = block_max;
      max_block = block.begin;
    }
    return true;
  });
  bool any_nan = false;
  bool any_infinity = false;
  scan.max = running_max;
  scan.min_finite = kInfinity;
  for (int lane = 0; lane < kLanes; ++lane) {
    any_nan |= nan_lane[lane] != 0;
    any_infinity |= infinity_lane[lane] != 0;
    scan.min_finite = min_lane[lane] < scan.min_finite ? min_lane[lane] : scan.min_finite;
  }
  if (any_nan) {
    scan.status = RowStatus::kLogitNaN;
  } else if (any_infinity) {
    scan.status = RowStatus::kLogitPositiveInfinity;
  } else if (scan.num_finite == 0) {
    scan.status = RowStatus::kNoFiniteLogit;
  } else {
    scan.argmax = max_block;
    while (to_float(row.data[scan.argmax]) != scan.max) ++scan.argmax;
  }
  return scan;
}

// z = (l - max) / T without overflow of l - max: rows of huge logits are first multiplied by 1/4.
struct Scaling {
  float factor;
  float max;
  float temperature;

  Scaling(const RowScan& scan, float row_temperature) {
    const bool huge = scan.max > 0x1p125f || scan.min_finite < -0x1p125f;
    factor = huge ? 0.25f : 1.0f;
    max = scan.max * factor;
    const float scaled = row_temperature * factor;
    // A temperature that is not zero must not become zero: 0 / 0 at the maximum would be NaN.
    temperature = scaled > 0.0f ? scaled : row_temperature;
  }

  float operator()(float logit) const { return (logit * factor - max) / temperature; }
};

inline void masses_of(const Block& block, const Scaling& scaling, uint64_t* masses) {
  alignas(64) float weights[kBlock];
  for (int i = 0; i < block.padded; ++i) {
    weights[i] = exp_nonpositive(scaling(block.logits[i]));
  }
  for (int i = 0; i < block.padded; ++i) masses[i] = fixed_mass(weights[i]);
}

inline uint64_t sum_of(const uint64_t* masses, int padded) {
  uint64_t sum = 0;
  for (int i = 0; i < padded; ++i) sum += masses[i];
  return sum;
}

// Sum of the masses of the whole row.
template <typename Element>
uint64_t total_mass(const Row<Element>& row, const Scaling& scaling) {
  alignas(64) uint64_t masses[kBlock];
  uint64_t total = 0;
  for_each_block(row, [&](const Block& block) {
    masses_of(block, scaling, masses);
    total += sum_of(masses, block.padded);
    return true;
  });
  return total;
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
