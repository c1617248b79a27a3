// Temperature and top_p that the heads predict, behind the products of their first weights with the
// hidden states. Grid, leader and shared memory as in sample.cuh. Every block of a team predicts
// the temperature for itself, so that none waits for it; the features are those of
// distribution_stats.cuh; the leader, which has them, finishes top_p.
#pragma once

#include "autodeco/predict_parameters.h"
#include "distribution_stats.cuh"

namespace autodeco::cuda {

// sigmoid(W2 relu(hidden) + b2) by the whole block, where hidden_of(i) is unit i before relu; the
// same in every thread. Ends with a barrier. A float32 tree whose shape is that of the block: no
// launch shape and no batch can be seen in it.
template <typename HiddenOf>
__device__ __forceinline__ float output_of_head(const HeadLayers& head, HiddenOf hidden_of,
                                                const Memory& memory) {
  float sum = 0.0f;
  for (int64_t unit = gpu::thread_index(); unit < head.width; unit += gpu::num_threads()) {
    const float hidden = hidden_of(unit);
    sum += (hidden < 0.0f ? 0.0f : hidden) * head.second_weight[unit];  // NaN stays NaN
  }
  sum = block_sum(sum, memory.head()->scratch_float);
  return 1.0f / (1.0f + expf(-(sum + *head.second_bias)));
}

__device__ __forceinline__ float predicted_temperature(const PredictParametersArguments& arguments,
                                                       int64_t row_index, const Memory& memory) {
  const HeadLayers& head = arguments.temperature_head;
  if (head.product == nullptr) return 1.0f;
  const float* product = head.product + row_index * head.width;
  return 2.0f *
         output_of_head(
             head, [&](int64_t unit) { return product[unit] + head.first_bias[unit]; }, memory);
}

__device__ __forceinline__ float predicted_top_p(const PredictParametersArguments& arguments,
                                                 int64_t row_index, float temperature,
                                                 const Statistics& statistics,
                                                 const Memory& memory) {
  const HeadLayers& head = arguments.top_p_head;
  if (head.product == nullptr) return 1.0f;
  const float* product = head.product + row_index * head.width;
  const auto hidden_of = [&](int64_t unit) {
    const float* weight = arguments.feature_weight + unit * arguments.feature_weight_stride;
    float hidden = product[unit] + head.first_bias[unit];
    hidden += weight[0] * temperature;
    if (arguments.uses_statistics) {
#pragma unroll
      for (int i = 0; i < kNumStats; ++i) hidden += weight[1 + i] * statistics.value[i];
    }
    return hidden;
  };
  return output_of_head(head, hidden_of, memory);
}

template <typename Element, bool kTeam>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<kTeam>)
    predict_parameters_kernel(PredictParametersArguments arguments) {
  const RowTask<Element, kTeam> task(arguments.logits, arguments.layout, all_columns(),
                                     arguments.team);
  Statistics statistics = {};
  {
    const float temperature = predicted_temperature(arguments, task.row_index, task.memory);
    if (task.team.leads() && gpu::thread_index() == 0) {
      arguments.temperature[task.row_index] = temperature;
    }
    if (arguments.uses_statistics) statistics = row_statistics(task, temperature);
  }
  if (!task.team.leads()) return;
  gpu::block_barrier();
  // Read again: kept so long, it would not fit the registers.
  const float temperature = arguments.temperature[task.row_index];
  const float top_p =
      predicted_top_p(arguments, task.row_index, temperature, statistics, task.memory);
  if (gpu::thread_index() == 0) {
    arguments.top_p[task.row_index] = top_p;
    arguments.status[task.row_index] = statistics.status;
  }
}

}  // namespace autodeco::cuda
