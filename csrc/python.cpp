// The Python module. Loading it registers the operators. build_info() tells how it was built.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/simd/dispatch.h"
#include "math/state.h"
#include "math/topk.h"

namespace py = pybind11;

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = ADAPRUNER_COMPILER;
    info["torch"] = ADAPRUNER_TORCH_VERSION;
#ifdef ADAPRUNER_X86_64
    info["instruction_sets"] = py::make_tuple("baseline", "v3", "v4");
#else
    info["instruction_sets"] = py::make_tuple("baseline");
#endif
    info["instruction_set"] = adapruner::isa_name(adapruner::current_isa());
#ifdef _OPENMP
    info["openmp"] = true;
#else
    info["openmp"] = false;
#endif
    const std::string no_cuda = ADAPRUNER_NO_CUDA;
    if (no_cuda.empty()) {
      info["cuda"] = py::dict(py::arg("version") = ADAPRUNER_CUDA_VERSION,
                              py::arg("architectures") = ADAPRUNER_CUDA_ARCHITECTURES);
    } else {
      info["cuda"] = py::none();
      info["no_cuda"] = no_cuda;
    }
    return info;
  });

  // The slots of csrc/math/state.h, so that Python does not repeat the layout of the state tensor.
  py::dict slots;
  slots["slope"] = int(adapruner::kSlope);
  slots["gate_sum"] = int(adapruner::kGateSum);
  slots["open_count"] = int(adapruner::kOpenCount);
  slots["population"] = int(adapruner::kPopulation);
  slots["keep_ratio"] = int(adapruner::kKeepRatio);
  slots["balance"] = int(adapruner::kBalance);
  slots["balance_gain"] = int(adapruner::kBalanceGain);
  slots["easy_weight"] = int(adapruner::kEasyWeight);
  slots["pressure_cap"] = int(adapruner::kPressureCap);
  slots["step_size"] = int(adapruner::kStepSize);
  slots["age_cap"] = int(adapruner::kAgeCap);
  slots["resting"] = int(adapruner::kResting);
  slots["plain"] = int(adapruner::kPlain);
  slots["loss_scale"] = int(adapruner::kLossScale);
  slots["scale_running"] = int(adapruner::kScaleRunning);
  slots["loss_sum"] = int(adapruner::kLossSum);
  slots["loss_count"] = int(adapruner::kLossCount);
  slots["not_finite_count"] = int(adapruner::kNotFiniteCount);
  slots["not_finite_ids"] = int(adapruner::kNotFiniteIds);
  slots["error_kind"] = int(adapruner::kErrorKind);
  slots["error_place"] = int(adapruner::kErrorPlace);
  slots["error_value"] = int(adapruner::kErrorValue);
  slots["error_latch"] = int(adapruner::kErrorLatch);
  m.attr("state_slots") = slots;
  py::dict errors;
  errors["id"] = int(adapruner::kBadId);
  errors["target"] = int(adapruner::kBadTarget);
  errors["sample_loss"] = int(adapruner::kNegativeLoss);
  m.attr("error_kinds") = errors;
  m.attr("state_size") = adapruner::kStateSize;
  m.attr("not_finite_capacity") = adapruner::kNotFiniteCapacity;
  m.attr("never_visited") = adapruner::kNeverVisited;
  m.attr("oldest") = adapruner::kOldest;
}
