// Runs an op on the device of its logits: threads on the CPU, the current stream on CUDA.
#pragma once

#include "autodeco/team_scratch.h"
#include "checks.h"

namespace autodeco::ops {

inline bool is_on_cuda(const Tensor& tensor) { return tensor.is_cuda(); }

// Calls launch(stream) with the device of `logits` current; fails if it does not return 0.
void run_on_cuda(const char* op, const Tensor& logits, int (*launch)(const void*, void*),
                 const void* arguments);

// What the blocks that share a row need of global memory on the current device. It may be released
// when the kernel is started: torch gives it to nobody who does not come later in the stream.
class TeamMemory {
 public:
  TeamMemory(const Tensor& logits, const RowLayout& layout);
  const TeamScratch& scratch() const { return scratch_; }

 private:
  std::optional<Tensor> memory_;
  TeamScratch scratch_;
};

// cpu_kernel(arguments, begin, end) over the rows, or kLaunch(arguments, stream).
template <auto kLaunch, typename Arguments>
void run_rows(const char* op, const Tensor& logits, const Arguments& arguments,
              void (*cpu_kernel)(const Arguments&, int64_t, int64_t)) {
  if (is_on_cuda(logits)) {
    struct Call {
      const Tensor& logits;
      const Arguments& arguments;
    };
    const Call call = {logits, arguments};
    const auto launch = [](const void* untyped, void* stream) {
      const Call& call = *static_cast<const Call*>(untyped);
      if constexpr (requires { call.arguments.team; }) {
        Arguments with_team = call.arguments;
        const TeamMemory memory(call.logits, with_team.layout);
        with_team.team = memory.scratch();
        return kLaunch(with_team, stream);
      } else {
        return kLaunch(call.arguments, stream);
      }
    };
    run_on_cuda(op, logits, launch, &call);
    return;
  }
  for_rows(arguments.layout,
           [&](int64_t begin, int64_t end) { cpu_kernel(arguments, begin, end); });
}

// What torch::stable::empty makes, on the device of the logits, without its search for the op by
// name and its boxed arguments, which take longer than the allocation.
Tensor allocate(const Tensor& logits, const std::vector<int64_t>& shape, ScalarType dtype);

// One status per row, on the device of the logits.
class RowStatuses {
 public:
  RowStatuses(const Tensor& logits, int64_t num_rows);
  RowStatus* data();
  // Fails naming the first row that is not valid, and why. On CUDA this waits for the kernel.
  void require_valid(const char* op, const FilterParameters& filters,
                     const RowParameter<int64_t>& labels = {}) const;

 private:
  std::vector<RowStatus> on_host_;
  std::optional<Tensor> on_cuda_;
};

}  // namespace autodeco::ops
