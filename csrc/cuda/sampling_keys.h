#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace adapruner::cuda {

// keys [n] from gate_logits [n] and age [n]. See csrc/ops.cpp. Does not wait for the device.
void write_sampling_keys(const float* gate_logits, const uint8_t* age, int64_t n, double scale,
                         double turns, uint64_t key, double ceiling, float* keys,
                         int multiprocessors, cudaStream_t stream);

}  // namespace adapruner::cuda
