// Checks and conversions that every op shares: tensors in, contract structs out.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "autodeco/dtype.h"
#include "autodeco/filters.h"
#include "autodeco/row_layout.h"
#include "autodeco/row_parameter.h"
#include "autodeco/row_status.h"

namespace autodeco::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// One sentence: «autodeco_ext.sample: logits must have at least one dimension, got 0».
// autodeco_ext/_arguments.py turns it into a ValueError.
template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << "autodeco_ext." << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < shape.size(); ++i) text << (i > 0 ? ", " : "") << shape[i];
  text << ']';
  return text.str();
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

// Double to float32 as semantics.md asks; beyond its range infinite, never undefined.
float to_float32(double value);

DType logits_dtype(const char* op, const Tensor& logits);

// Merges dimensions that one stride can walk. `name` is the argument the message speaks of.
RowLayout row_layout(const char* op, const char* name, const Tensor& tensor);

// More than kMaxCountableVocab columns are refused.
void require_countable_vocab(const char* op, const RowLayout& layout);

// Shape of one value per row: logits.shape[:-1].
std::vector<int64_t> row_shape(const Tensor& logits);

// A contiguous tensor of one value per row (or of one value: the same for every row), or a scalar.
template <typename T>
RowParameter<T> row_parameter(const char* op, const char* name,
                              const std::optional<Tensor>& per_row, T value, const Tensor& logits,
                              int64_t num_rows) {
  constexpr ScalarType kExpected = std::is_same_v<T, float> ? ScalarType::Float : ScalarType::Long;
  RowParameter<T> parameter;
  parameter.value = value;
  if (!per_row.has_value()) return parameter;
  const Tensor& tensor = *per_row;
  if (tensor.scalar_type() != kExpected) {
    fail(op, name, " must be ", std::is_same_v<T, float> ? "float32" : "int64", " here, got ",
         torch::headeronly::toString(tensor.scalar_type()));
  }
  if (tensor.device() != logits.device()) {
    fail(op, name, " must be on the device of logits, got another");
  }
  if (tensor.numel() != num_rows || !tensor.is_contiguous()) {
    fail(op, name, " must be contiguous with one value per row (", num_rows, "), got shape ",
         shape_text(shape_of(tensor)));
  }
  parameter.per_row = tensor.const_data_ptr<T>();
  return parameter;
}

FilterParameters filter_parameters(const char* op, const Tensor& logits, int64_t num_rows,
                                   const std::optional<Tensor>& temperature,
                                   double temperature_value, const std::optional<Tensor>& top_p,
                                   double top_p_value, const std::optional<Tensor>& top_k,
                                   int64_t top_k_value, const std::optional<Tensor>& min_p,
                                   double min_p_value, const std::optional<Tensor>& valid_vocab,
                                   int64_t valid_vocab_value);

// Fails naming the first row that is not valid, and why. `labels` only where the op has such.
void require_valid_rows(const char* op, const std::vector<RowStatus>& status,
                        const FilterParameters& filters, const RowParameter<int64_t>& labels = {});

// Calls kernel(begin, end) over the rows on torch's own threads. Each takes the next rows when it
// is done with its last: rows differ in what they cost, and a thread that slept wakes up late.
template <typename Kernel>
void for_rows(const RowLayout& layout, const Kernel& kernel) {
  const int64_t num_rows = layout.num_rows;
  const int64_t step = rows_at_once(layout);
  const int64_t num_threads =
      std::min<int64_t>(torch::stable::get_num_threads(), (num_rows + step - 1) / step);
  if (num_threads <= 1) {
    if (num_rows > 0) kernel(0, num_rows);
    return;
  }
  std::atomic<int64_t> next{0};
  const auto take_rows = [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(step, std::memory_order_relaxed)) < num_rows;) {
      kernel(begin, std::min(begin + step, num_rows));
    }
  };
  torch::stable::parallel_for(0, num_threads, 1, take_rows);
}

}  // namespace autodeco::ops
