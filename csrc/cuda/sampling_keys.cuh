// Random keys whose top-k is a draw. One thread for each sample.
#pragma once

#include "../math/sampling.h"
#include "device.h"

namespace adapruner::cuda {

constexpr int kSamplingThreads = 256;

static __global__ void __launch_bounds__(kSamplingThreads)
    sampling_keys_kernel(const float* gate_logits, const uint8_t* age, int64_t n, double scale,
                         double turns, uint64_t key, double ceiling, float* keys) {
  __shared__ double age_terms[kAges];
  for (int a = threadIdx.x; a < kAges; a += blockDim.x) age_terms[a] = age_term(turns, a);
  __syncthreads();
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    const uint64_t hash = sample_hash(static_cast<uint64_t>(i), key);
    keys[i] = sampling_key(scale, gate_logits[i], ceiling, age_terms[age[i]], exponential(hash));
  }
}

void write_sampling_keys(const float* gate_logits, const uint8_t* age, int64_t n, double scale,
                         double turns, uint64_t key, double ceiling, float* keys,
                         int multiprocessors, cudaStream_t stream) {
  launch_strided(sampling_keys_kernel, n, kSamplingThreads, multiprocessors, kSamplingThreads,
                 stream, gate_logits, age, n, scale, turns, key, ceiling, keys);
}

}  // namespace adapruner::cuda
