// The two training losses of a range of rows, with their gradients with respect to T and P
// (docs/architecture.md, «The training losses»).
#pragma once

#include "loss_steep.h"

namespace autodeco::cpu::AUTODECO_ISA {
namespace {

struct RowLosses {
  double losses[2] = {};
  double gradients[3] = {};
};

// Where the row's mean of l is about the label's, their difference, which the gradients by T are
// made of, is less than what float32 rounds of either. The moment is then taken from one about the
// label. One more read.
template <typename Element>
void refine_moment(const Row<Element>& row, const LossScale& scale, float label_logit,
                   LossSums& sums) {
  // A float32 sum is off by up to 1e-6 of itself, a gradient may be by 1e-4.
  constexpr double kCancels = 0x1p-6;
  const double total = sums.all.total();
  const double of_label = -scale.distance(label_logit, sums.max) / scale.inverse;
  const double apart = sums.all.moment / total - of_label;
  if ((apart < 0.0 ? -apart : apart) >= -kCancels * of_label) return;
  double moment = 0.0;
  for (int number = 0; number < row.num_blocks(); ++number) {
    const Block<Element> block = row.block(number);
    Floats of_block = {};
    for (int i = 0; i < block.padded; i += kLanes) {
      const Floats logits = load(block.data + i);
      of_block +=
          scale.weights(scale.difference(logits, sums.max)) * scale.difference(logits, label_logit);
    }
    moment += static_cast<double>(sum_of_lanes(of_block));
  }
  sums.all.moment = of_label * total + moment;
}

// weight * -ln softmax(l / T)_label and its gradient with respect to T.
inline void temperature_loss(const LossScale& scale, const LossSums& sums, float label_logit,
                             bool megatron, double unit_weight, bool clamped, RowLosses& row) {
  const double total = sums.all.total();
  const double distance = scale.distance(label_logit, sums.max);
  const double weight = megatron ? exponential(-distance) / total : unit_weight;
  const double others = static_cast<double>(sums.all.at_max - 1) + sums.all.rest;
  row.losses[0] = weight * (logarithm_1p(others) + distance);
  const double lambda = -sums.all.moment * scale.inverse / total - distance;
  if (!clamped) row.gradients[0] = weight * lambda / scale.temperature;
}

template <typename Element>
RowStatus losses_of_row(const AutodecoLossArguments& arguments, int64_t row_index,
                        const Row<Element>& row, bool (&counted)[2], RowLosses& result) {
  const LossOptions& options = arguments.options;
  const float temperature = arguments.temperature[row_index];
  const float top_p = arguments.top_p[row_index];
  const int64_t label_index = arguments.labels[row_index];
  const RowStatus fault =
      loss_status(temperature, top_p, label_index, arguments.layout.vocab, options);
  LossSums sums;
  if (fault != RowStatus::kValid) {
    // The logits first: where they are NaN, the temperature that a head made of them is too.
    if (fault == RowStatus::kLabelOutsideVocab) return fault;
    sum_row(row, LossScale(1.0), kNoLabel, UnitSum::kNo, sums);
    return sums.status == RowStatus::kValid ? fault : sums.status;
  }
  const int label = static_cast<int>(label_index);
  const LossScale top_p_scale(clamped(temperature, options.top_p_temperature_clamp));
  sum_row(row, top_p_scale, label, UnitSum::kWherePlain, sums);
  if (sums.status != RowStatus::kValid) return sums.status;
  const float label_logit = row[label];
  if (arguments.drop_uniform != nullptr && label_logit == sums.max && sums.before.at_max == 0 &&
      arguments.drop_uniform[row_index] < arguments.easy_token_drop) {
    counted[0] = false;
    counted[1] = !options.megatron;
  }
  // The base masks the label out: no weight.
  if (label_logit == -kInfinity || !(counted[0] || counted[1])) return RowStatus::kValid;

  refine_moment(row, top_p_scale, label_logit, sums);
  const double unit_distance = static_cast<double>(sums.max) - static_cast<double>(label_logit);
  const double unit_weight = exponential(-unit_distance) / unit_total(row, top_p_scale, sums);
  if (counted[0]) {
    const LossScale scale(clamped(temperature, options.temperature_clamp));
    const bool is_clamped = temperature < options.temperature_clamp;
    if (scale.temperature == top_p_scale.temperature) {
      temperature_loss(scale, sums, label_logit, options.megatron, unit_weight, is_clamped, result);
    } else {
      LossSums at_other;
      sum_row(row, scale, kNoLabel, UnitSum::kNo, at_other);
      refine_moment(row, scale, label_logit, at_other);
      temperature_loss(scale, at_other, label_logit, options.megatron, unit_weight, is_clamped,
                       result);
    }
  }
  // A weight that is 0 in float32 has no loss, also where probability_eps is 0 and -ln q infinite.
  if (counted[1] && static_cast<float>(unit_weight) > 0.0f) {
    LabelToken token;
    LogitList list;
    const auto walk_tokens = [&] {
      if (options.steepness > kSteep) {
        const LossScale exact = top_p_scale.exact();
        return walk_singly(LossRow<Element>{row, exact, sums, list, label}, options, top_p, token);
      }
      NoShares shares;
      const float lightest = lightest_logit(top_p_scale, sums, kLight);
      list_row(row, sums, lightest, list);
      const LightBand light(row, top_p_scale, sums, list, lightest, NoShares::kMostHeavy,
                            NoShares::kSlots);
      return walk_row(LossRow<Element>{row, top_p_scale, sums, list, label}, options, top_p, light,
                      token, shares);
    };
    const SoftTopPWalk walk = walk_tokens();
    const SoftTopPLoss loss = soft_top_p_loss(walk, token, top_p_scale.temperature,
                                              options.mass_eps, options.probability_eps);
    result.losses[1] = unit_weight * loss.loss;
    if (temperature >= options.top_p_temperature_clamp) {
      result.gradients[1] = unit_weight * loss.temperature_gradient;
    }
    result.gradients[2] = unit_weight * loss.top_p_gradient;
  }
  return RowStatus::kValid;
}

void autodeco_loss_rows(const AutodecoLossArguments& arguments, int64_t begin, int64_t end) {
  const int64_t num_rows = arguments.layout.num_rows;
  for (int64_t row_index = begin; row_index < end; ++row_index) {
    bool counted[2] = {true, true};
    RowLosses result;
    RowStatus status = RowStatus::kValid;
    if (arguments.labels[row_index] == arguments.ignore_index) {
      counted[0] = counted[1] = false;
    } else {
      with_row(arguments.dtype, arguments.logits, row_offset(arguments.layout, row_index),
               arguments.layout.vocab, [&](const auto& row) {
                 status = losses_of_row(arguments, row_index, row, counted, result);
               });
    }
    const bool valid = status == RowStatus::kValid;
    arguments.status[row_index] = status;
    for (int i = 0; i < 2; ++i) {
      arguments.counted[i * num_rows + row_index] = counted[i];
      arguments.losses[i * num_rows + row_index] =
          valid ? static_cast<float>(result.losses[i]) : kNaN;
    }
    for (int i = 0; i < 3; ++i) {
      arguments.gradients[i * num_rows + row_index] =
          valid ? static_cast<float>(result.gradients[i]) : kNaN;
    }
  }
}

}  // namespace
}  // namespace autodeco::cpu::AUTODECO_ISA
