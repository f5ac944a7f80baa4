#include "gate_update.cuh"
#include "gate_update.h"

namespace adapruner::cuda {

void gate_update(Type type, const GateArrays& gates, const int64_t* ids, const void* pressure,
                 const void* loss, int64_t batch, cudaStream_t stream) {
  const auto start = [&](auto zero) {
    using Real = decltype(zero);
    const auto* p = static_cast<const Real*>(pressure);
    const auto* l = static_cast<const Real*>(loss);
    gate_update(GateBatch<Real>{ids, p, l, batch}, gates, stream);
  };
  type == Type::kDouble ? start(double{}) : start(float{});
}

void first_loss_scale(Type type, float* pressure, const void* loss, int64_t batch, int64_t* state,
                      cudaStream_t stream) {
  const auto start = [&](auto zero) {
    first_loss_scale(pressure, static_cast<const decltype(zero)*>(loss), batch, state, stream);
  };
  type == Type::kDouble ? start(double{}) : start(float{});
}

}  // namespace adapruner::cuda
