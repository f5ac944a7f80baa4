#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "types.h"

namespace adapruner::cuda {

// out [n] = gradient [n] · upstream, all on the device. out may be gradient. Both have type `type`.
// upstream is double for double, otherwise float.
void scale_gradient(Type type, const void* gradient, void* out, int64_t n, const void* upstream,
                    int multiprocessors, cudaStream_t stream);

}  // namespace adapruner::cuda
