#pragma once

#include <cuda_runtime_api.h>

#include "selection.h"

namespace adapruner::cuda {

// mask [ceil(n / 8)] ← the `count` oldest of the candidates [ceil(n / 8)]. age [n] is aligned to 16
// bytes. Does not wait for the device.
void write_oldest(const uint8_t* candidates, const uint8_t* age, int64_t n, int64_t count,
                  uint64_t key, uint8_t* mask, int multiprocessors, const Scratch& scratch,
                  cudaStream_t stream);

}  // namespace adapruner::cuda
