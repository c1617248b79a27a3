#include "autodeco/floor.h"

#include "../cpu/isa.h"
#include "../cuda/floor.h"
#include "device.h"

namespace autodeco::ops {
namespace {

constexpr const char* kOp = "floor";

Tensor floor(const Tensor& logits) {
  FloorArguments arguments;
  arguments.layout = row_layout(kOp, "logits", logits);
  arguments.dtype = logits_dtype(kOp, logits);
  require_countable_vocab(kOp, arguments.layout);
  arguments.logits = logits.const_data_ptr();
  arguments.columns =
      is_on_cuda(logits) ? cuda::floor_parts(arguments.layout.num_rows, arguments.layout.vocab) : 2;
  std::vector<int64_t> shape = row_shape(logits);
  shape.push_back(arguments.columns);
  const Tensor output = allocate(logits, shape, ScalarType::Float);
  arguments.output = output.mutable_data_ptr<float>();
  run_rows<&cuda::launch_floor>(kOp, logits, arguments, cpu::active_kernels().floor);
  return output;
}

}  // namespace
}  // namespace autodeco::ops

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CPU, library) {
  library.impl("floor", TORCH_BOX(&autodeco::ops::floor));
}

STABLE_TORCH_LIBRARY_IMPL(autodeco_ext, CUDA, library) {
  library.impl("floor", TORCH_BOX(&autodeco::ops::floor));
}
