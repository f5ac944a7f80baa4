#include "gate_update.h"

#include <torch/library.h>

#include "../checks.h"
#include "../integers.h"
#include "context.h"

namespace adapruner::cuda {
namespace {

GateArrays arrays_of(at::Tensor& gate_logits, const at::Tensor& age, const at::Tensor& state) {
  // gate_drift does not write age and state, which it takes as const.
  return {gate_logits.mutable_data_ptr<float>(),
          const_cast<uint8_t*>(age.const_data_ptr<uint8_t>()),
          const_cast<int64_t*>(state.const_data_ptr<int64_t>()), nullptr, gate_logits.numel()};
}

void gate_update_cuda(at::Tensor& gate_logits, at::Tensor& age, at::Tensor& state,
                      const std::optional<at::Tensor>& last_loss, const at::Tensor& ids,
                      const at::Tensor& pressure, const at::Tensor& sample_loss) {
  check_gate_update(gate_logits, age, state, last_loss, ids, pressure, sample_loss);
  const Context context(gate_logits);
  const bool wide =
      pressure.scalar_type() == at::kDouble || sample_loss.scalar_type() == at::kDouble;
  const auto real = wide ? at::kDouble : at::kFloat;
  const at::Tensor id = as_int64(ids);
  const at::Tensor pressures = pressure.to(real).contiguous();
  const at::Tensor losses = sample_loss.to(real).contiguous();
  GateArrays gates = arrays_of(gate_logits, age, state);
  if (last_loss.has_value()) gates.last_loss = last_loss->mutable_data_ptr<float>();
  gate_update(wide ? Type::kDouble : Type::kFloat, gates, id.const_data_ptr<int64_t>(),
              pressures.const_data_ptr(), losses.const_data_ptr(), id.numel(), context.stream);
}

void first_loss_scale_cuda(at::Tensor& pressure, at::Tensor& state, const at::Tensor& sample_loss) {
  check_first_loss_scale(pressure, state, sample_loss);
  const Context context(pressure);
  const bool wide = sample_loss.scalar_type() == at::kDouble;
  const at::Tensor losses = sample_loss.to(wide ? at::kDouble : at::kFloat).contiguous();
  first_loss_scale(wide ? Type::kDouble : Type::kFloat, pressure.mutable_data_ptr<float>(),
                   losses.const_data_ptr(), losses.numel(), state.mutable_data_ptr<int64_t>(),
                   context.stream);
}

void gate_drift_cuda(at::Tensor& gate_logits, const at::Tensor& age, const at::Tensor& state,
                     const at::Tensor& last_loss) {
  check_gate_drift(gate_logits, age, state, last_loss);
  const Context context(gate_logits);
  GateArrays gates = arrays_of(gate_logits, age, state);
  gates.last_loss = const_cast<float*>(last_loss.const_data_ptr<float>());
  gate_drift(gates, context.multiprocessors, context.stream);
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CUDA, m) {
  m.impl("first_loss_scale", first_loss_scale_cuda);
  m.impl("gate_update", gate_update_cuda);
  m.impl("gate_drift", gate_drift_cuda);
}

}  // namespace adapruner::cuda
