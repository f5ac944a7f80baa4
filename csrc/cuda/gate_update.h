#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "gate_arrays.h"
#include "types.h"

namespace adapruner::cuda {

// See csrc/ops.cpp. ids [batch]. pressure [batch] and loss [batch] have type `type`, kFloat or
// kDouble.
void gate_update(Type type, const GateArrays& gates, const int64_t* ids, const void* pressure,
                 const void* loss, int64_t batch, cudaStream_t stream);

// Writes pressure [batch] and state. loss [batch] has type `type`, as above.
void first_loss_scale(Type type, float* pressure, const void* loss, int64_t batch, int64_t* state,
                      cudaStream_t stream);

// Reads last_loss, which must not be null.
void gate_drift(const GateArrays& gates, int multiprocessors, cudaStream_t stream);

}  // namespace adapruner::cuda
