#pragma once

#include <cuda_runtime_api.h>

#include "selection.h"

namespace adapruner::cuda {

// The k largest of values [n], 0 ≤ k ≤ n, as a mask of 32-bit words [ceil(n / 32)] with spare bits
// 0. values are aligned to 16 bytes. sums [2], if not null: Σ gate_fixed(slope, value) and the
// number of values > 0. Returns the index of the first NaN, or −1. Waits for the stream once.
int64_t topk_mask(const float* values, int64_t n, int64_t k, double slope, uint32_t* mask,
                  int64_t* sums, int multiprocessors, const Scratch& scratch, cudaStream_t stream);

}  // namespace adapruner::cuda
