#pragma once

#include <cuda_runtime_api.h>

#include "integers.h"
#include "selection.h"

namespace adapruner::cuda {

// The quotas[s] largest of each of `count` segments s: values [n] and segments [n] aligned to 16
// bytes, quotas [count] on the device too. mask and sums as topk_mask's; they are complete where
// nothing is wrong. Waits for the stream once, or a few times.
SegmentedErrors select_segmented(const float* values, int64_t n, const Integers& segments,
                                 int64_t count, const int64_t* quotas, double slope, uint32_t* mask,
                                 int64_t* sums, int multiprocessors, const Scratch& scratch,
                                 cudaStream_t stream);

}  // namespace adapruner::cuda
