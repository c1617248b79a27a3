// Runs the CUDA kernels on the emulated device with buffers of exactly the right size.
#pragma once

#include "distribution_stats.cuh"
#include "emulated_rows.h"
#include "filter_logits.cuh"
#include "sample.cuh"

namespace autodeco::tests {

template <typename Element>
Element from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline cuda::BFloat16 from_float<cuda::BFloat16>(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if (!std::isnan(value) && !std::isinf(value)) bits += 0x7fffu + (bits >> 16 & 1);
  return {static_cast<uint16_t>(bits >> 16 | (std::isnan(value) ? 0x40u : 0u))};
}
template <>
inline cuda::Float16 from_float<cuda::Float16>(float value) {
  if (std::isnan(value)) return {0x7e00};
  if (std::isinf(value)) return {static_cast<uint16_t>(value > 0 ? 0x7c00 : 0xfc00)};
  const uint32_t sign = std::bit_cast<uint32_t>(value) >> 16 & 0x8000u;
  const float magnitude = std::min(std::fabs(value), 65504.0f);
  if (magnitude < 0x1p-14f) {
    return {
        static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f)))};
  }
  uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  bits += 0xfffu + (bits >> 13 & 1);
  return {static_cast<uint16_t>(sign | ((bits >> 13) - (112u << 10)))};
}

template <typename Element>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<Element, float>) return DType::kFloat32;
  if constexpr (std::is_same_v<Element, cuda::BFloat16>) return DType::kBFloat16;
  return DType::kFloat16;
}

// Rows of one launch, `misaligned` elements after a 16-byte boundary.
template <typename Element>
struct Batch {
  int num_rows;
  int vocab;
  int64_t stride;
  int misaligned;
  std::vector<Element> memory;
  std::vector<std::vector<float>> rows;  // what the elements hold, as float32

  Batch(const std::vector<std::vector<float>>& source, int misaligned_by)
      : num_rows(static_cast<int>(source.size())),
        vocab(static_cast<int>(source[0].size())),
        stride(vocab),
        misaligned(misaligned_by) {
    memory.resize(static_cast<size_t>(misaligned + num_rows * stride));
    for (int row = 0; row < num_rows; ++row) {
      rows.emplace_back();
      for (int i = 0; i < vocab; ++i) {
        const Element element = from_float<Element>(source[row][i]);
        memory[static_cast<size_t>(misaligned + row * stride + i)] = element;
        rows.back().push_back(cuda::to_float(element));
      }
    }
  }

  RowLayout layout() const {
    RowLayout layout;
    layout.num_rows = num_rows;
    layout.vocab = vocab;
    layout.num_dims = 1;
    layout.sizes[0] = num_rows;
    layout.strides[0] = stride;
    return layout;
  }
};

struct SampleResult {
  std::vector<int64_t> tokens;
  std::vector<RowStatus> status;
  std::vector<float> logprobs;
  std::vector<float> raw_logprobs;
  std::vector<int64_t> kept;
  std::vector<float> log_kept_mass;
  uint64_t bytes_loaded = 0;

  bool operator==(const SampleResult& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    return tokens == other.tokens && status == other.status && kept == other.kept &&
           same(logprobs, other.logprobs) && same(raw_logprobs, other.raw_logprobs) &&
           same(log_kept_mass, other.log_kept_mass);
  }
};

// How many blocks share a row, and whether the code knows no clusters, so that they meet in global
// memory.
struct Shape {
  int blocks;
  bool portable;

  Shape(int blocks_per_row, bool without_clusters = false)
      : blocks(blocks_per_row), portable(without_clusters) {}
  std::string text() const {
    return std::to_string(blocks) + (portable ? " blocks without clusters" : " blocks");
  }
};
inline Shape portable(int blocks) { return {blocks, true}; }
inline const Shape kShapes[] = {1, 2, 4, 8, portable(1), portable(2), portable(4), portable(8)};
inline Shape random_shape(std::mt19937_64& random) {
  return kShapes[random() % std::size(kShapes)];
}

// Scratch as the ops make it, and as a kernel may find it: NaN, small numbers, or what an earlier
// kernel left there.
inline char* scratch_of(size_t bytes) {
  static std::vector<char> scratch;
  static std::mt19937_64 random(1);
  const uint64_t kind = random() % 3;
  if (scratch.size() != bytes) std::vector<char>(bytes).swap(scratch);
  if (kind == 0) std::memset(scratch.data(), 0xff, bytes);
  if (kind == 1) {
    uint32_t* words = reinterpret_cast<uint32_t*>(scratch.data());
    for (size_t i = 0; i < bytes / sizeof(uint32_t); ++i) words[i] = random() % 3;
  }
  return scratch.data();
}

// Starts the kernel for one block a row, or that for several. What both need of shared memory is
// `shared_bytes`, or that of a row.
template <typename Arguments>
void run_rows(void (*one)(Arguments), void (*several)(Arguments), Arguments arguments, Shape shape,
              size_t shared_bytes = 0) {
  const RowLayout& layout = arguments.layout;
  gpu::Launch where;
  where.blocks = layout.num_rows * shape.blocks;
  // The kernels take any number of warps; ThreadSanitizer is slow to make fibers.
  where.threads = emulation::kDetectsRaces ? 64 : cuda::kThreads;
  where.shared_bytes = shared_bytes != 0 ? shared_bytes : cuda::shared_memory_bytes(layout.vocab);
  where.has_clusters = !shape.portable;
  if (where.has_clusters) {
    where.cluster = static_cast<unsigned>(shape.blocks);
  } else if (shape.blocks > 1) {  // one block needs no scratch and waits for nobody
    const size_t rows = static_cast<size_t>(layout.num_rows);
    arguments.team = {scratch_of(rows * cuda::team_scratch_bytes(layout.vocab)), shape.blocks};
    where.together = true;
  }
  gpu::launch(shape.blocks > 1 ? several : one, where, arguments);
}

// For every row of a launch.
inline FilterParameters same_for_all(const Filters& filters, int64_t valid_vocab) {
  FilterParameters parameters;
  parameters.temperature.value = filters.temperature;
  parameters.top_p.value = filters.top_p;
  parameters.top_k.value = filters.top_k;
  parameters.min_p.value = filters.min_p;
  parameters.valid_vocab.value = valid_vocab;
  return parameters;
}

template <typename Element>
std::vector<float> filter_logits(const Batch<Element>& batch, const Filters& filters, Shape shape,
                                 int64_t valid_vocab, std::vector<RowStatus>& status) {
  cuda::FilterKernelArguments arguments;
  arguments.logits = batch.memory.data() + batch.misaligned;
  arguments.dtype = dtype_of<Element>();
  arguments.layout = arguments.output_layout = batch.layout();
  arguments.filters = same_for_all(filters, valid_vocab);
  arguments.filter_value = -std::numeric_limits<float>::infinity();
  std::vector<float> output(static_cast<size_t>(batch.num_rows * batch.vocab), -7.0f);
  status.assign(static_cast<size_t>(batch.num_rows), RowStatus::kNoFiniteLogit);
  arguments.output = output.data();
  arguments.status = status.data();
  run_rows(&cuda::filter_logits_kernel<Element, false>, &cuda::filter_logits_kernel<Element, true>,
           arguments, shape);
  return output;
}

template <typename Element>
std::vector<float> distribution_stats(const Batch<Element>& batch, float temperature, Shape shape,
                                      std::vector<RowStatus>& status) {
  DistributionStatsArguments arguments;
  arguments.logits = batch.memory.data() + batch.misaligned;
  arguments.dtype = dtype_of<Element>();
  arguments.layout = batch.layout();
  arguments.temperature.value = temperature;
  std::vector<float> output(static_cast<size_t>(batch.num_rows * kNumStats), -7.0f);
  status.assign(static_cast<size_t>(batch.num_rows), RowStatus::kNoFiniteLogit);
  arguments.output = output.data();
  arguments.status = status.data();
  run_rows(&cuda::distribution_stats_kernel<Element, false>,
           &cuda::distribution_stats_kernel<Element, true>, arguments, shape);
  return output;
}

constexpr int64_t kSeed = 0x123456789abcdefLL;

template <typename Element>
SampleResult sample(const Batch<Element>& batch, const std::vector<Filters>& filters, Shape shape,
                    int num_samples, bool info, int64_t valid_vocab) {
  const size_t rows = static_cast<size_t>(batch.num_rows);
  std::vector<float> temperature, top_p, min_p;
  std::vector<int64_t> top_k, seed, offset;
  for (size_t row = 0; row < rows; ++row) {
    temperature.push_back(filters[row].temperature);
    top_p.push_back(filters[row].top_p);
    top_k.push_back(filters[row].top_k);
    min_p.push_back(filters[row].min_p);
    seed.push_back(kSeed);
    offset.push_back(static_cast<int64_t>(row) * 977);
  }
  SampleArguments arguments;
  arguments.logits = batch.memory.data() + batch.misaligned;
  arguments.dtype = dtype_of<Element>();
  arguments.layout = batch.layout();
  arguments.filters.temperature.per_row = temperature.data();
  arguments.filters.top_p.per_row = top_p.data();
  arguments.filters.top_k.per_row = top_k.data();
  arguments.filters.min_p.per_row = min_p.data();
  arguments.filters.valid_vocab.value = valid_vocab;
  arguments.seed.per_row = seed.data();
  arguments.offset.per_row = offset.data();
  arguments.num_samples = num_samples;
  SampleResult result;
  result.tokens.assign(rows * static_cast<size_t>(num_samples), -7);
  result.status.assign(rows, RowStatus::kNoFiniteLogit);
  arguments.tokens = result.tokens.data();
  arguments.status = result.status.data();
  if (info) {
    result.logprobs.assign(result.tokens.size(), -7.0f);
    result.raw_logprobs.assign(result.tokens.size(), -7.0f);
    result.kept.assign(rows, -7);
    result.log_kept_mass.assign(rows, -7.0f);
    arguments.logprobs = result.logprobs.data();
    arguments.raw_logprobs = result.raw_logprobs.data();
    arguments.kept = result.kept.data();
    arguments.log_kept_mass = result.log_kept_mass.data();
  }
  const uint64_t before = emulation::device.bytes_loaded;
  run_rows(&cuda::sample_kernel<Element, false>, &cuda::sample_kernel<Element, true>, arguments,
           shape);
  result.bytes_loaded = emulation::device.bytes_loaded - before;
  return result;
}

}  // namespace autodeco::tests
