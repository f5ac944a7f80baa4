#pragma once

#include <cuda_runtime_api.h>

#include "selection.h"

namespace adapruner::cuda {

// indices ← the next samples of the order from `position` on, `count` of them or those that are
// left of n; mask [ceil(n / 8)]. Waits for the stream after every stretch of places.
OrderEnd write_order(const uint8_t* mask, int64_t n, uint64_t key, int64_t position, int64_t count,
                     int64_t* indices, int multiprocessors, const Scratch& scratch,
                     cudaStream_t stream);

}  // namespace adapruner::cuda
