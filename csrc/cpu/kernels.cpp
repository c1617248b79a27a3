// Compiled once per instruction set: CMakeLists.txt sets AUTODECO_ISA (the namespace) and the
// flags.
//
// Everything the kernels use has internal linkage, so that no function compiled here with wider
// instructions can replace one of the baseline at link time. No STL containers, no torch.
#if !defined(AUTODECO_ISA)
#error "AUTODECO_ISA must name the instruction set; see CMakeLists.txt"
#endif

#include "autodeco_loss_gradient_impl.h"
#include "autodeco_loss_impl.h"
#include "distribution_stats_impl.h"
#include "filter_logits_impl.h"
#include "floor_impl.h"
#include "isa.h"
#include "kept_indices_impl.h"
#include "predict_parameters_impl.h"
#include "sample_impl.h"

#define AUTODECO_TEXT_OF(name) #name
#define AUTODECO_NAME_OF(name) AUTODECO_TEXT_OF(name)  // expands it first

namespace autodeco::cpu::AUTODECO_ISA {

const KernelTable& kernels();  // declared where isa.cpp does

const KernelTable& kernels() {
  static constexpr KernelTable table = {AUTODECO_NAME_OF(AUTODECO_ISA),
                                        &sample_rows,
                                        &filter_logits_rows,
                                        &count_kept_rows,
                                        &write_kept_rows,
                                        &distribution_stats_rows,
                                        &predict_parameters_rows,
                                        &autodeco_loss_rows,
                                        &autodeco_loss_gradient_rows,
                                        &floor_rows};
  return table;
}

}  // namespace autodeco::cpu::AUTODECO_ISA
