// What `_C` offers to Python: what was built, which instruction set is in use, and the direct call
// of direct_sample.cpp. The ops are registered with the dispatcher in csrc/ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "../cpu/isa.h"
#if defined(AUTODECO_WITH_CUDA)
#include "../cuda/runtime.h"
#endif
#include "direct_sample.h"

namespace py = pybind11;

namespace autodeco {
namespace {

std::vector<cpu::Isa> all_isas() { return {cpu::Isa::kScalar, cpu::Isa::kAvx2, cpu::Isa::kAvx512}; }

#if defined(AUTODECO_WITH_CUDA)
// "13.0" for 13000, empty for 0.
std::string version_text(int version) {
  if (version == 0) return "";
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}
#endif

py::dict build_info() {
  py::dict info;
  info["version"] = AUTODECO_VERSION;
  info["compiler"] = AUTODECO_COMPILER;
  info["torch_built_against"] = AUTODECO_TORCH_VERSION;
  std::vector<std::string> built;
  for (const cpu::Isa isa : all_isas()) {
    if (cpu::isa_is_built(isa)) built.emplace_back(cpu::isa_name(isa));
  }
  info["cpu_isas_built"] = built;
  info["cuda_decision"] = AUTODECO_CUDA_DECISION;
#if defined(AUTODECO_WITH_CUDA)
  const cuda::RuntimeInfo runtime = cuda::runtime_info();
  info["cuda_built"] = true;
  info["cuda_architectures"] = AUTODECO_CUDA_ARCHITECTURES;
  info["cuda_runtime_version"] = version_text(runtime.runtime_version);
  info["cuda_driver_version"] = version_text(runtime.driver_version);
  info["cuda_devices"] = runtime.num_devices;
  info["cuda_problem"] = runtime.problem;
#else
  info["cuda_built"] = false;
#endif
  return info;
}

std::vector<std::string> supported_cpu_isas() {
  std::vector<std::string> names;
  for (const cpu::Isa isa : all_isas()) {
    if (cpu::isa_is_built(isa) && cpu::isa_is_supported(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

bool set_cpu_isa(const std::string& name) {
  for (const cpu::Isa isa : all_isas()) {
    if (name == cpu::isa_name(isa)) return cpu::set_active_isa(isa);
  }
  return false;
}

}  // namespace
}  // namespace autodeco

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build information and CPU dispatch of autodeco_ext.";
  module.def("build_info", &autodeco::build_info, "What was built, with what, and why.");
  module.def(
      "cpu_isa", [] { return autodeco::cpu::active_kernels().isa; },
      "Name compiled into the CPU kernels that the ops run.");
  module.def("supported_cpu_isas", &autodeco::supported_cpu_isas,
             "Names of the instruction sets that are built and run here.");
  module.def("set_cpu_isa", &autodeco::set_cpu_isa, py::arg("name"),
             "Use one instruction set from now on; False if it is not built or not supported.");
  if (!autodeco::python::add_direct_sample(module.ptr())) throw py::error_already_set();
}
