#include "device.cuh"
#include "distribution_stats.cuh"
#include "distribution_stats.h"

namespace autodeco::cuda {

int launch_distribution_stats(const DistributionStatsArguments& arguments, void* stream) {
  return launch_rows(arguments, stream, [&](auto element, auto team, const gpu::Launch& where) {
    return gpu::launch<&distribution_stats_kernel<decltype(element), team()>>(where, arguments);
  });
}

}  // namespace autodeco::cuda
