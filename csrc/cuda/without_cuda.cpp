// Stands in for the .cu files in a build without CUDA, so that csrc/ops is the same in both.
#include "autodeco_loss.h"
#include "autodeco_loss_gradient.h"
#include "distribution_stats.h"
#include "filter_logits.h"
#include "floor.h"
#include "kept_indices.h"
#include "predict_parameters.h"
#include "runtime.h"
#include "sample.h"
#include "team.h"

namespace autodeco::cuda {

TeamNeeds team_needs(const RowLayout&) { return {}; }
int launch_sample(const SampleArguments&, void*) { return kNotBuilt; }
int launch_filter_logits(const FilterLogitsArguments&, void*) { return kNotBuilt; }
int launch_count_kept(const KeptIndicesArguments&, void*) { return kNotBuilt; }
int launch_write_kept(const KeptIndicesArguments&, void*) { return kNotBuilt; }
int launch_distribution_stats(const DistributionStatsArguments&, void*) { return kNotBuilt; }
int use_device(int) { return kNotBuilt; }
int launch_predict_parameters(const PredictParametersArguments&, void*) { return kNotBuilt; }
int launch_autodeco_loss(const AutodecoLossArguments&, void*) { return kNotBuilt; }
int launch_autodeco_loss_gradient(const AutodecoLossGradientArguments&, void*) { return kNotBuilt; }
int launch_floor(const FloorArguments&, void*) { return kNotBuilt; }
int read_value(const void*, void*, size_t) { return kNotBuilt; }
const char* error_text(int) {
  return "this build of autodeco_ext has no CUDA half (" AUTODECO_CUDA_DECISION ")";
}

}  // namespace autodeco::cuda
