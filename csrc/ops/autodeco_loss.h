// What the registered op `autodeco_loss_rows` and the direct call of csrc/python share.
#pragma once

#include "autodeco/autodeco_loss.h"

namespace autodeco::ops {

// Of checked numbers.
LossOptions loss_options(bool megatron, bool exclusive, double steepness, double temperature_clamp,
                         double top_p_temperature_clamp, double mass_eps, double probability_eps);

// The rows of CPU tensors, on torch's threads.
void run_autodeco_loss(const AutodecoLossArguments& arguments);

}  // namespace autodeco::ops
