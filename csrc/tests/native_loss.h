// Rows to run the CPU kernels of the training losses on.
#pragma once

#include <memory>

#include "isa.h"
#include "loss_oracle.h"

namespace autodeco::cpu::AUTODECO_ISA {
const KernelTable& kernels();
}

namespace autodeco::tests {

// Rows in buffers of their exact size.
struct Batch {
  std::vector<float> temperature, top_p, losses, gradients;
  std::vector<int64_t> labels;
  std::unique_ptr<bool[]> counted;
  std::vector<RowStatus> status;
  AutodecoLossArguments arguments;

  Batch(const void* logits, DType dtype, int64_t rows, int64_t vocab)
      : temperature(rows, 1.0f),
        top_p(rows, 0.5f),
        losses(2 * rows),
        gradients(3 * rows),
        labels(rows),
        counted(new bool[2 * rows]),
        status(rows, RowStatus::kNoFiniteLogit) {
    arguments.logits = logits;
    arguments.dtype = dtype;
    arguments.layout.num_rows = arguments.layout.sizes[0] = rows;
    arguments.layout.vocab = arguments.layout.strides[0] = vocab;
    arguments.layout.num_dims = 1;
    arguments.temperature = temperature.data();
    arguments.top_p = top_p.data();
    arguments.labels = labels.data();
    arguments.losses = losses.data();
    arguments.gradients = gradients.data();
    arguments.counted = counted.get();
    arguments.status = status.data();
  }
  void run() {
    cpu::AUTODECO_ISA::kernels().autodeco_loss(arguments, 0, arguments.layout.num_rows);
  }
  template <typename Element>
  std::vector<Element> gradient_of_logits(const std::vector<float>& of_losses) {
    std::vector<Element> output(arguments.layout.num_rows * arguments.layout.vocab);
    AutodecoLossGradientArguments backward;
    backward.logits = arguments.logits;
    backward.dtype = arguments.dtype;
    backward.layout = arguments.layout;
    backward.temperature = temperature.data();
    backward.top_p = top_p.data();
    backward.labels = labels.data();
    backward.counted = counted.get();
    backward.loss_gradients = of_losses.data();
    backward.options = arguments.options;
    backward.gradient = output.data();
    cpu::AUTODECO_ISA::kernels().autodeco_loss_gradient(backward, 0, arguments.layout.num_rows);
    return output;
  }
};

}  // namespace autodeco::tests
