#pragma once

#include <cuda_runtime_api.h>

#include "cross_entropy_batch.h"
#include "types.h"

namespace adapruner::cuda {

// sample_loss [B] has type `type`, gradient [B] the type of the loss. batch.sample_loss is not
// written.
void masked_loss(Type type, const LossBatch& batch, const void* sample_loss, void* gradient,
                 cudaStream_t stream);

}  // namespace adapruner::cuda
