#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace adapruner::cuda {

// histogram [kDigits + 1] of values [n], which are aligned to 16 bytes. See csrc/ops.cpp. Does not
// wait for the device.
void count_key_digits(const float* values, int64_t n, const int64_t* key_range, int64_t* histogram,
                      int multiprocessors, cudaStream_t stream);

void narrow_key_range(const int64_t* key_range, const int64_t* histogram, int64_t* narrower,
                      cudaStream_t stream);

}  // namespace adapruner::cuda
