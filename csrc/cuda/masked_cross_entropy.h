#pragma once

#include <cuda_runtime_api.h>

#include "cross_entropy_batch.h"
#include "cross_entropy_plan.h"
#include "types.h"

namespace adapruner::cuda {

// To be called before the rows of a batch.
void begin_cross_entropy(const CrossEntropyBatch& batch, const CrossEntropyPlan& plan,
                         cudaStream_t stream);

// The units [begin, end) of a batch's plan: their losses, and their gradients where these are
// wanted. Once all units are done, in whatever launches, the batch's results are there. `type` is
// the dtype of logits and gradient.
void cross_entropy_rows(Type type, const CrossEntropyBatch& batch, const CrossEntropyPlan& plan,
                        const CrossEntropyRows<void>& rows, int64_t begin, int64_t end,
                        cudaStream_t stream);

}  // namespace adapruner::cuda
