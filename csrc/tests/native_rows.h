// Rows to run the CPU kernels of the sampler on, in buffers of exactly their size.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "autodeco/distribution_stats.h"
#include "autodeco/filter_logits.h"
#include "autodeco/kept_indices.h"
#include "autodeco/sample.h"
#include "isa.h"
#include "simd.h"

namespace autodeco::cpu::AUTODECO_ISA {
const KernelTable& kernels();
}

namespace autodeco::tests {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

template <typename Element>
std::vector<std::byte> stored_as(std::vector<float>& logits) {
  using namespace cpu::AUTODECO_ISA;
  std::vector<std::byte> memory(logits.size() * sizeof(Element));
  Element lanes[kLanes];
  for (size_t i = 0; i < logits.size(); ++i) {
    store(lanes, splat(logits[i]));
    std::memcpy(memory.data() + i * sizeof(Element), lanes, sizeof(Element));
    logits[i] = to_float(lanes[0]);
  }
  return memory;
}

// The logits as kernels read them. They become what they are rounded to.
inline std::vector<std::byte> stored(std::vector<float>& logits, DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return stored_as<float>(logits);
    case DType::kBFloat16:
      return stored_as<cpu::AUTODECO_ISA::BFloat16>(logits);
    case DType::kFloat16:
      return stored_as<cpu::AUTODECO_ISA::Float16>(logits);
  }
  return {};
}

// The last of one row or of several, with nothing but NaN around the columns that exist.
struct LastRow {
  std::vector<float> columns;  // as they are stored
  std::vector<std::byte> memory;
  DType dtype;
  RowLayout layout;
  FilterParameters filters;  // off

  LastRow(const std::vector<float>& given, int64_t vocab, int64_t num_rows, DType stored_dtype)
      : dtype(stored_dtype) {
    const int64_t stride = vocab + 5;
    std::vector<float> logits(static_cast<size_t>((num_rows - 1) * stride + vocab),
                              cpu::AUTODECO_ISA::kNaN);
    const auto row = logits.end() - vocab;
    std::copy(given.begin(), given.end(), row);
    memory = stored(logits, dtype);
    columns.assign(row, row + std::ssize(given));
    layout.num_rows = layout.sizes[0] = num_rows;
    layout.strides[0] = stride;
    layout.vocab = vocab;
    layout.num_dims = num_rows > 1 ? 1 : 0;
    filters.temperature.value = filters.top_p.value = 1.0f;
    filters.valid_vocab.value = std::ssize(given);
  }

  // Everything but the outputs. `status` gets a place for every row.
  template <typename Arguments>
  Arguments arguments(std::vector<RowStatus>& status) const {
    Arguments result;
    result.logits = memory.data();
    result.dtype = dtype;
    result.layout = layout;
    if constexpr (requires { result.filters; }) result.filters = filters;
    status.assign(static_cast<size_t>(layout.num_rows), RowStatus::kLabelOutsideVocab);
    result.status = status.data();
    return result;
  }
};

// What a kernel wrote for one of its rows.
struct Draw {
  RowStatus status;
  int64_t kept;
  float log_kept_mass;
  std::vector<int64_t> tokens;
  std::vector<float> logprobs, raw_logprobs;
};

struct Values {
  RowStatus status;
  std::vector<float> values;
};

struct KeptColumns {
  RowStatus status;
  std::vector<int32_t> ids;
};

inline Draw draw(const LastRow& row, int64_t seed, int64_t num_samples) {
  const int64_t rows = row.layout.num_rows;
  std::vector<RowStatus> status;
  auto arguments = row.arguments<SampleArguments>(status);
  std::vector<int64_t> tokens(static_cast<size_t>(rows * num_samples), -7);
  std::vector<int64_t> kept(static_cast<size_t>(rows), -7);
  std::vector<float> logprobs(tokens.size()), raw_logprobs(tokens.size());
  std::vector<float> log_kept_mass(kept.size());
  arguments.seed.value = seed;
  arguments.num_samples = num_samples;
  arguments.tokens = tokens.data();
  arguments.logprobs = logprobs.data();
  arguments.raw_logprobs = raw_logprobs.data();
  arguments.kept = kept.data();
  arguments.log_kept_mass = log_kept_mass.data();
  cpu::AUTODECO_ISA::kernels().sample(arguments, rows - 1, rows);
  return {status.back(),
          kept.back(),
          log_kept_mass.back(),
          {tokens.end() - num_samples, tokens.end()},
          {logprobs.end() - num_samples, logprobs.end()},
          {raw_logprobs.end() - num_samples, raw_logprobs.end()}};
}

// -inf outside of the kept set.
inline Values filtered(const LastRow& row) {
  const int64_t rows = row.layout.num_rows;
  const int64_t vocab = row.layout.vocab;
  std::vector<RowStatus> status;
  auto arguments = row.arguments<FilterLogitsArguments>(status);
  std::vector<float> output(static_cast<size_t>(rows * vocab), -7.0f);
  arguments.output_layout = row.layout;
  arguments.output_layout.strides[0] = vocab;
  arguments.filter_value = -cpu::AUTODECO_ISA::kInfinity;
  arguments.output = output.data();
  cpu::AUTODECO_ISA::kernels().filter_logits(arguments, rows - 1, rows);
  return {status.back(), {output.end() - vocab, output.end()}};
}

inline KeptColumns kept_columns(const LastRow& row) {
  const int64_t rows = row.layout.num_rows;
  std::vector<RowStatus> status;
  auto arguments = row.arguments<KeptIndicesArguments>(status);
  std::vector<int64_t> offsets(static_cast<size_t>(rows + 1));
  std::vector<LastKept> last(static_cast<size_t>(rows));
  arguments.offsets = offsets.data();
  arguments.last = last.data();
  cpu::AUTODECO_ISA::kernels().count_kept(arguments, rows - 1, rows);
  std::vector<int32_t> ids(static_cast<size_t>(offsets.back()), -7);
  arguments.ids = ids.data();
  arguments.capacity = offsets.back();
  cpu::AUTODECO_ISA::kernels().write_kept(arguments, rows - 1, rows);
  return {status.back(), ids};
}

// Of the columns that exist: this op knows no valid_vocab.
inline Values stats_of(const LastRow& row) {
  const int64_t rows = row.layout.num_rows;
  std::vector<RowStatus> status;
  auto arguments = row.arguments<DistributionStatsArguments>(status);
  std::vector<float> output(static_cast<size_t>(rows * kNumStats), -7.0f);
  arguments.layout.vocab = std::ssize(row.columns);
  arguments.temperature = row.filters.temperature;
  arguments.output = output.data();
  cpu::AUTODECO_ISA::kernels().distribution_stats(arguments, rows - 1, rows);
  return {status.back(), {output.end() - kNumStats, output.end()}};
}

}  // namespace autodeco::tests
