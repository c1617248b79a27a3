#include "autodeco/sample.h"

#include <limits>
#include <tuple>

#include "../cpu/isa.h"
#include "../cuda/sample.h"
#include "device.h"

namespace autodeco::ops {
namespace {

constexpr const char* kOp = "sample";

using TokensAndInfo = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Both schemas of library.cpp: tokens alone, or tokens with everything the same pass knows.
template <bool kWithInfo>
std::conditional_t<kWithInfo, TokensAndInfo, Tensor> sample(
    const Tensor& logits, const std::optional<Tensor>& temperature, double temperature_value,
    const std::optional<Tensor>& top_p, double top_p_value, const std::optional<Tensor>& top_k,
    int64_t top_k_value, const std::optional<Tensor>& min_p, double min_p_value,
    const std::optional<Tensor>& valid_vocab, int64_t valid_vocab_value,
    const std::optional<Tensor>& seed, int64_t seed_value, const std::optional<Tensor>& offset,
    int64_t offset_value, std::optional<int64_t> num_samples, bool check) {
  SampleArguments arguments;
  arguments.layout = row_layout(kOp, "logits", logits);
  arguments.dtype = logits_dtype(kOp, logits);
  require_countable_vocab(kOp, arguments.layout);
  const int64_t num_rows = arguments.layout.num_rows;
  arguments.logits = logits.const_data_ptr();
  arguments.filters =
      filter_parameters(kOp, logits, num_rows, temperature, temperature_value, top_p, top_p_value,
                        top_k, top_k_value, min_p, min_p_value, valid_vocab, valid_vocab_value);
  arguments.seed = row_parameter(kOp, "seed", seed, seed_value, logits, num_rows);
  arguments.offset = row_parameter(kOp, "offset", offset, offset_value, logits, num_rows);
  arguments.add_row_to_offset = !seed.has_value() && !offset.has_value();
  arguments.num_samples = num_samples.value_or(1);
  // The sample index is one 32-bit word of the random counter.
  if (arguments.num_samples < 1 || arguments.num_samples > std::numeric_limits<uint32_t>::max()) {
    fail(kOp, "num_samples must be between 1 and 2^32 - 1, got ", arguments.num_samples);
  }

  const std::vector<int64_t> per_row = row_shape(logits);
  std::vector<int64_t> per_sample = per_row;
  if (num_samples.has_value()) per_sample.push_back(arguments.num_samples);
  const Tensor tokens = allocate(logits, per_sample, ScalarType::Long);
  arguments.tokens = tokens.mutable_data_ptr<int64_t>();
  RowStatuses status(logits, num_rows);
  arguments.status = status.data();
  const auto launch = [&]() {
    run_rows<&cuda::launch_sample>(kOp, logits, arguments, cpu::active_kernels().sample);
    if (check) status.require_valid(kOp, arguments.filters);
  };

  if constexpr (kWithInfo) {
    const Tensor logprobs = allocate(logits, per_sample, ScalarType::Float);
    const Tensor raw_logprobs = allocate(logits, per_sample, ScalarType::Float);
    const Tensor kept = allocate(logits, per_row, ScalarType::Long);
    const Tensor log_kept_mass = allocate(logits, per_row, ScalarType::Float);
    const Tensor valid = allocate(logits, per_row, ScalarType::Bool);
    arguments.logprobs = logprobs.mutable_data_ptr<float>();
    arguments.raw_logprobs = raw_logprobs.mutable_data_ptr<float>();
    arguments.kept = kept.mutable_data_ptr<int64_t>();
    arguments.log_kept_mass = log_kept_mass.mutable_data_ptr<float>();
    arguments.valid = valid.mutable_data_ptr<bool>();
    launch();
    return {tokens, logprobs, raw_logprobs, kept, log_kept_mass, valid};
  } else {
    launch();
    return tokens;
  }
}

}  // namespace
}  // namespace autodeco::ops

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CPU, library) {
  library.impl("sample", TORCH_BOX(&autodeco::ops::sample<false>));
  library.impl("sample_with_info", TORCH_BOX(&autodeco::ops::sample<true>));
}

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CUDA, library) {
  library.impl("sample", TORCH_BOX(&autodeco::ops::sample<false>));
  library.impl("sample_with_info", TORCH_BOX(&autodeco::ops::sample<true>));
}
