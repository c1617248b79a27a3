#include "device.cuh"
#include "kept_indices.cuh"
#include "kept_indices.h"

namespace autodeco::cuda {

int launch_count_kept(const KeptIndicesArguments& arguments, void* stream) {
  return launch_filter_kernel(count_kept_arguments(arguments), stream);
}

int launch_write_kept(const KeptIndicesArguments& arguments, void* stream) {
  return launch_rows(arguments, stream, [&](auto element, auto team, gpu::Launch where) {
    const int64_t team_size = where.blocks / arguments.layout.num_rows;
    where.shared_bytes = marks_bytes(arguments.layout.vocab, static_cast<unsigned>(team_size));
    return gpu::launch<&write_kept_kernel<decltype(element), team()>>(where, arguments);
  });
}

}  // namespace autodeco::cuda
