#include "checks.h"

#include <iomanip>
#include <limits>
#include <locale>

namespace autodeco::ops {
namespace {

// In as few digits as say which float it is, six at least. std::to_chars would need a C++ runtime
// newer than what else is used here. Not «-nan», which depends on the bits of the NaN.
std::string number_text(float value) {
  if (value != value) return "nan";
  for (int digits = std::numeric_limits<float>::digits10;; ++digits) {
    std::stringstream text;
    text.imbue(std::locale::classic());
    text << std::setprecision(digits) << value;
    const std::string written = text.str();
    float read = 0.0f;
    text >> read;
    if (read == value || digits == std::numeric_limits<float>::max_digits10) return written;
  }
}

std::string reason(RowStatus status, const FilterParameters& filters,
                   const RowParameter<int64_t>& labels, int64_t row) {
  std::ostringstream text;
  switch (status) {
    case RowStatus::kValid:
      break;
    case RowStatus::kTemperatureInvalid:
      text << "temperature must be finite and >= 0, got "
           << number_text(value_at(filters.temperature, row));
      break;
    case RowStatus::kTopKNegative:
      text << "top_k must be >= 0, got " << value_at(filters.top_k, row);
      break;
    case RowStatus::kValidVocabBelowOne:
      text << "valid_vocab must be >= 1, got " << value_at(filters.valid_vocab, row);
      break;
    case RowStatus::kTopPNaN:
      text << "top_p must be a number, got nan";
      break;
    case RowStatus::kMinPNaN:
      text << "min_p must be a number, got nan";
      break;
    case RowStatus::kLogitNaN:
      text << "logits must not contain NaN, got NaN";
      break;
    case RowStatus::kLogitPositiveInfinity:
      text << "logits must be below +inf, got +inf";
      break;
    case RowStatus::kNoFiniteLogit:
      text << "logits must have a finite value among the valid columns, got none";
      break;
    case RowStatus::kTemperatureZero:
      text << "temperature must be > 0 where its clamp is 0, got 0";
      break;
    case RowStatus::kTopPOutsideUnit:
      text << "top_p must be in [0, 1], got " << number_text(value_at(filters.top_p, row));
      break;
    case RowStatus::kLabelOutsideVocab:
      text << "labels must be a column of logits or ignore_index, got " << value_at(labels, row);
      break;
  }
  text << " in row " << row;
  return text.str();
}

}  // namespace

float to_float32(double value) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  if (value > kLargest) return kInfinity;
  if (value < -kLargest) return -kInfinity;
  return static_cast<float>(value);
}

DType logits_dtype(const char* op, const Tensor& logits) {
  switch (logits.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      fail(op, "logits must be float32, bfloat16 or float16, got ",
           torch::headeronly::toString(logits.scalar_type()));
  }
}

RowLayout row_layout(const char* op, const char* name, const Tensor& tensor) {
  const int64_t dims = tensor.dim();
  if (dims == 0) fail(op, name, " must have at least one dimension, got 0");
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  RowLayout layout;
  layout.vocab = sizes[dims - 1];
  if (layout.vocab == 0)
    fail(op, name, " must have at least one column, got shape ", shape_text(shape_of(tensor)));
  if (layout.vocab > 1 && strides[dims - 1] != 1) {
    fail(op, name, " must have a vocabulary stride of 1, got ", strides[dims - 1],
         " (call .contiguous() first)");
  }
  layout.num_rows = 1;
  for (int64_t dim = 0; dim < dims - 1; ++dim) {
    layout.num_rows *= sizes[dim];
    if (sizes[dim] == 1) continue;
    const int last = layout.num_dims - 1;
    if (last >= 0 && layout.strides[last] == sizes[dim] * strides[dim]) {
      layout.sizes[last] *= sizes[dim];
      layout.strides[last] = strides[dim];
      continue;
    }
    if (layout.num_dims == kMaxRowDims) {
      fail(op, name, " must have at most ", kMaxRowDims,
           " leading dimensions that cannot be merged, got shape ", shape_text(shape_of(tensor)));
    }
    layout.sizes[layout.num_dims] = sizes[dim];
    layout.strides[layout.num_dims] = strides[dim];
    ++layout.num_dims;
  }
  return layout;
}

void require_countable_vocab(const char* op, const RowLayout& layout) {
  if (layout.vocab > kMaxCountableVocab) {
    fail(op, "logits must have at most ", kMaxCountableVocab, " columns, got ", layout.vocab);
  }
}

std::vector<int64_t> row_shape(const Tensor& logits) {
  std::vector<int64_t> shape = shape_of(logits);
  shape.pop_back();
  return shape;
}

FilterParameters filter_parameters(const char* op, const Tensor& logits, int64_t num_rows,
                                   const std::optional<Tensor>& temperature,
                                   double temperature_value, const std::optional<Tensor>& top_p,
                                   double top_p_value, const std::optional<Tensor>& top_k,
                                   int64_t top_k_value, const std::optional<Tensor>& min_p,
                                   double min_p_value, const std::optional<Tensor>& valid_vocab,
                                   int64_t valid_vocab_value) {
  FilterParameters filters;
  filters.temperature = row_parameter(op, "temperature", temperature, to_float32(temperature_value),
                                      logits, num_rows);
  filters.top_p = row_parameter(op, "top_p", top_p, to_float32(top_p_value), logits, num_rows);
  filters.top_k = row_parameter(op, "top_k", top_k, top_k_value, logits, num_rows);
  filters.min_p = row_parameter(op, "min_p", min_p, to_float32(min_p_value), logits, num_rows);
  filters.valid_vocab =
      row_parameter(op, "valid_vocab", valid_vocab, valid_vocab_value, logits, num_rows);
  return filters;
}

void require_valid_rows(const char* op, const std::vector<RowStatus>& status,
                        const FilterParameters& filters, const RowParameter<int64_t>& labels) {
  for (size_t row = 0; row < status.size(); ++row) {
    if (status[row] == RowStatus::kValid) continue;
    fail(op, reason(status[row], filters, labels, static_cast<int64_t>(row)));
  }
}

}  // namespace autodeco::ops
