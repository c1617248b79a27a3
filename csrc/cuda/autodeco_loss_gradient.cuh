// The gradient of the training losses with respect to the logits: the sums and the walk of the
// losses once more, then one read of the row that writes it. Grid: a block a row. Shared memory:
// loss_memory.cuh. docs/loss-kernels.md has the algorithm.
#pragma once

#include "loss_read.cuh"
#include "loss_shares.cuh"
#include "loss_write.cuh"

namespace autodeco::cuda {

// By one thread, after the walk: `walked` has added the label as well.
__device__ __forceinline__ LogitFactors
logit_factors(const AutodecoLossGradientArguments& arguments, int64_t row_index,
              const LossRow& known, const LossSums& sums, const SoftTopPWalk& walked) {
  const LossOptions& options = arguments.options;
  const int64_t rows = arguments.layout.num_rows;
  const double below = static_cast<double>(sums.max) - static_cast<double>(known.label_logit);
  const double raw = exponential(-below) / sums.raw_weight;
  const double temperature = static_cast<double>(known.top_p_temperature);
  LogitFactors factors = {};
  double other = 0.0;
  if (arguments.counted[row_index]) {
    const double first_temperature = static_cast<double>(known.temperature);
    const double first_weight = exponential(-below / first_temperature);
    const double first_total = first_weight + sums.other_weight;
    const double weight = options.megatron ? first_weight / first_total : raw;
    const double upstream = static_cast<double>(arguments.loss_gradients[row_index]);
    const double factor = upstream * weight / (first_temperature * first_total);
    (first_temperature == temperature ? factors.constant : other) += factor;
  }
  double edge = 0.0;
  if (arguments.counted[rows + row_index] && static_cast<float>(raw) > 0.0f) {
    const double distance = below / temperature;
    const double label_weight = exponential(-distance);
    const double total = sums.weight + (sums.apart ? label_weight : 0.0);
    const LabelToken label = {label_weight / total, sums.moment / total - distance,
                              LossMemory::head()->label_at, false};
    const SoftTopPLoss loss =
        soft_top_p_loss(walked, label, temperature, options.mass_eps, options.probability_eps);
    const double upstream = static_cast<double>(arguments.loss_gradients[rows + row_index]);
    const double factor = upstream * raw / (temperature * total);
    factors.per_h = factor * loss.per_share;
    factors.constant -= factor * loss.mean;
    edge = factor * loss.edge;
  }
  factors.tail = walked.steepness * walked.tail;
  factors.edge = LogitFactors::bounded(edge);
  factors.other = LogitFactors::bounded(other);
  return factors;
}

// Walks the items of a row that has been read, and makes factors of what `table` keeps of them.
template <typename Table, typename Walk>
__device__ __forceinline__ void find_factors(const AutodecoLossGradientArguments& arguments,
                                             int64_t row_index, Table& table,
                                             LogitGradientHead* gradient, Walk walk) {
  const LossHead* head = LossMemory::head();
  if (gpu::thread_index() == 0) {
    gradient->dust = kNaN;
    gradient->label.item = -1;
    gradient->lowest_heavy_logit = kInfinity;
    gradient->highest_cut_logit = -kInfinity;
    gradient->lowest_cut_logit = kInfinity;
    gradient->num_pushed = 0;
  }
  ShareItems<Table> items(table, gradient->by_rank);
  const SoftTopPWalk walked = walk(items);
  if (gpu::thread_index() == 0) {
    items.leave_label_out(walked);
    gradient->factors = logit_factors(arguments, row_index, head->known, head->sums, walked);
  }
  gpu::block_barrier();
  const LogitFactors& factors = gradient->factors;
  const uint32_t num_heavy = table.finish(factors);
  for (uint32_t rank = gpu::thread_index(); rank < num_heavy; rank += gpu::num_threads()) {
    const double share = static_cast<double>(gradient->by_rank[rank]);
    gradient->by_rank[rank] = factors.of_h(share - factors.tail);
  }
  if (gpu::thread_index() == 0) {
    const float share = gradient->dust;
    const double h = share == share ? static_cast<double>(share) - factors.tail : walked.decay(1.0);
    gradient->dust = factors.of_h(h);
  }
  gpu::block_barrier();
}

// Whether the row could be read. A label without mass leaves nothing to write but zeros.
template <typename Element>
__device__ __forceinline__ RowStatus write_row(const AutodecoLossGradientArguments& arguments,
                                               int64_t row_index, const Row<Element>& row,
                                               Element* output) {
  LossHead* head = LossMemory::head();
  LogitGradientHead* gradient = LossMemory::logit_gradient(row.num_segments);
  const LossRow& known = head->known;
  const SoftTopPWalk start = start_walk(arguments.options, known.top_p);
  const int num_values = read_counted_row(row);
  if (num_values == 0) {
    const RowStatus status = read_streamed_row(row, start);
    if (status != RowStatus::kValid) return status;
  }
  if (known.label_logit == -kInfinity) {
    fill_output(output, row.columns, 0.0f);
  } else if (num_values != 0) {
    const double below =
        static_cast<double>(head->sums.max) - static_cast<double>(known.label_logit);
    const double label_weight = exponential(-below / static_cast<double>(known.top_p_temperature));
    ValueTable table(num_values, head->sums, label_weight, start.steepness, gradient);
    find_factors(arguments, row_index, table, gradient, [&](auto& items) {
      return walk_values(num_values, start, known, head->sums, items);
    });
    write_gradient(row, known, head->sums.max, table, gradient, output);
  } else {
    BinTable table = {head->streamed, head->lists, gradient};
    find_factors(arguments, row_index, table, gradient, [&](auto& items) {
      return walk_listed(start, known, head->streamed, head->lists, head->sums, items);
    });
    write_gradient(row, known, head->sums.max, table, gradient, output);
  }
  return RowStatus::kValid;
}

template <typename Element>
__global__ void __launch_bounds__(kLossThreads, kBlocksPerMultiprocessor<false>)
    autodeco_loss_gradient_kernel(const __grid_constant__ AutodecoLossGradientArguments arguments) {
  gpu::promise_num_threads<kLossThreads>();
  const int64_t row_index = gpu::block_index();
  const int columns = static_cast<int>(arguments.layout.vocab);
  Element* output = static_cast<Element*>(arguments.gradient) + row_index * arguments.layout.vocab;
  const int64_t num_rows = arguments.layout.num_rows;
  if (!arguments.counted[row_index] && !arguments.counted[num_rows + row_index]) {
    fill_output(output, columns, 0.0f);
    return;
  }
  const float temperature = arguments.temperature[row_index];
  const float top_p = arguments.top_p[row_index];
  const int64_t label = arguments.labels[row_index];
  RowStatus status =
      loss_status(temperature, top_p, label, arguments.layout.vocab, arguments.options);
  if (status == RowStatus::kValid) {
    const Row<Element> row(arguments.logits, row_offset(arguments.layout, row_index), columns);
    know_row(row, arguments.options, temperature, top_p, static_cast<int>(label));
    status = write_row(arguments, row_index, row, output);
  }
  if (status != RowStatus::kValid) {
    fill_output(output, columns, kNaN);
  }
}

}  // namespace autodeco::cuda
