// The schema of every op. A parameter that may be a scalar or one value per row is a pair: the
// tensor wins when it is given.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(autodeco_ext, library) {
  library.def(
      "sample(Tensor logits, Tensor? temperature, float temperature_value, Tensor? top_p, "
      "float top_p_value, Tensor? top_k, int top_k_value, Tensor? min_p, float min_p_value, "
      "Tensor? valid_vocab, int valid_vocab_value, Tensor? seed, int seed_value, Tensor? offset, "
      "int offset_value, int? num_samples, bool check) -> Tensor");
  library.def(
      "sample_with_info(Tensor logits, Tensor? temperature, float temperature_value, "
      "Tensor? top_p, float top_p_value, Tensor? top_k, int top_k_value, Tensor? min_p, "
      "float min_p_value, Tensor? valid_vocab, int valid_vocab_value, Tensor? seed, "
      "int seed_value, Tensor? offset, int offset_value, int? num_samples, bool check) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "filter_logits_out(Tensor logits, Tensor? temperature, float temperature_value, "
      "Tensor? top_p, float top_p_value, Tensor? top_k, int top_k_value, Tensor? min_p, "
      "float min_p_value, Tensor? valid_vocab, int valid_vocab_value, float filter_value, "
      "Tensor(a!) out) -> ()");
  library.def(
      "kept_indices(Tensor logits, Tensor? temperature, float temperature_value, Tensor? top_p, "
      "float top_p_value, Tensor? top_k, int top_k_value, Tensor? min_p, float min_p_value, "
      "Tensor? valid_vocab, int valid_vocab_value, SymInt? capacity, bool check) -> "
      "(Tensor offsets, Tensor ids)");
  library.def(
      "distribution_stats(Tensor logits, Tensor? temperature, float temperature_value) -> "
      "Tensor");
  // A head is given by the product of its first weights with the hidden states, without which there
  // is none and it predicts 1, and its other layers.
  library.def(
      "predict_parameters(Tensor logits, Tensor? temperature_product, "
      "Tensor? temperature_first_bias, Tensor? temperature_second_weight, "
      "Tensor? temperature_second_bias, Tensor? top_p_product, Tensor? top_p_feature_weight, "
      "Tensor? top_p_first_bias, Tensor? top_p_second_weight, Tensor? top_p_second_bias, "
      "bool check) -> (Tensor, Tensor)");
  library.def(
      "autodeco_loss_rows(Tensor logits, Tensor temperature, Tensor top_p, Tensor labels, "
      "Tensor? drop_uniform, float easy_token_drop, int ignore_index, bool megatron, "
      "bool exclusive, float steepness, float temperature_clamp, float top_p_temperature_clamp, "
      "float mass_eps, float probability_eps, bool check) -> "
      "(Tensor losses, Tensor gradients, Tensor counted)");
  library.def(
      "autodeco_loss_logits_gradient(Tensor logits, Tensor temperature, Tensor top_p, "
      "Tensor labels, Tensor counted, Tensor loss_gradients, bool megatron, bool exclusive, "
      "float steepness, float temperature_clamp, float top_p_temperature_clamp, float mass_eps, "
      "float probability_eps) -> Tensor");
  // For bench/ alone: no public function, and no fake kernel, because the shape of the result is
  // that of the launch.
  library.def("floor(Tensor logits) -> Tensor");
}
