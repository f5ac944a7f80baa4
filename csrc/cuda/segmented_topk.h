#pragma once

#include <cuda_runtime_api.h>

#include "integers.h"
#include "selection.h"

namespace adapruner::cuda {

// The quotas[s] largest values of each of `count` segments s. values [n] and segments [n] are
// aligned to 16 bytes. quotas [count] is on the device too. mask and sums are as in topk_mask, and
// are complete if there is no error. Waits for the stream once, or a few times.
SegmentedErrors select_segmented(const float* values, int64_t n, const Integers& segments,
                                 int64_t count, const int64_t* quotas, double slope, uint32_t* mask,
                                 int64_t* sums, int multiprocessors, const Scratch& scratch,
                                 cudaStream_t stream);

}  // namespace adapruner::cuda
