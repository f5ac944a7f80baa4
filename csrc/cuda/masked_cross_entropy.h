#pragma once

#include <cuda_runtime_api.h>

#include "cross_entropy_batch.h"
#include "cross_entropy_plan.h"
#include "types.h"

namespace adapruner::cuda {

// Call it before cross_entropy_rows.
void begin_cross_entropy(const CrossEntropyBatch& batch, const CrossEntropyPlan& plan,
                         cudaStream_t stream);

// Runs the units [begin, end) of a batch's plan: their losses and, if wanted, their gradients. The
// results of the batch are complete once all units have run, in any number of launches. `type` is
// the dtype of logits and gradient.
void cross_entropy_rows(Type type, const CrossEntropyBatch& batch, const CrossEntropyPlan& plan,
                        const CrossEntropyRows<void>& rows, int64_t begin, int64_t end,
                        cudaStream_t stream);

}  // namespace adapruner::cuda
