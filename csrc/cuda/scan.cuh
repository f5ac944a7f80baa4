// Prefix sums within a warp and within a block.
#pragma once

#include "device.h"

namespace adapruner::cuda {

using Count = unsigned long long;  // the integer type of atomics

// The sum of the values of this lane and the lanes before it.
template <typename T>
__device__ T warp_running_sum(T value) {
#pragma unroll
  for (int apart = 1; apart < kWarpSize; apart *= 2) {
    const T other = __shfl_up_sync(kFullWarp, value, apart);
    if (lane() >= apart) value += other;
  }
  return value;
}

// The sum of the values of the threads before this one, in a one-dimensional block of whole warps.
// `total` becomes the sum of all values. Every thread calls it.
template <typename T>
__device__ T block_sum_before(T value, T& total) {
  __shared__ T sums[kWarpSize];
  const T running = warp_running_sum(value);
  if (lane() == kWarpSize - 1) sums[warp()] = running;
  __syncthreads();
  T before = running - value;
  total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarpSize; ++w) {
    if (w < warp()) before += sums[w];
    total += sums[w];
  }
  __syncthreads();  // `sums` can be written again
  return before;
}

// True if this is the last of `count` threads to arrive. It then sees the writes of the others.
// `arrived` counts the threads, from 0.
__device__ inline bool is_last(unsigned* arrived, unsigned count) {
  __threadfence();
  const bool last = atomicAdd(arrived, 1u) == count - 1;
  if (last) __threadfence();
  return last;
}

// True in the last block of the grid to arrive. It then sees the writes of all other blocks. Every
// thread of a block calls it once. `arrived` is 0 before and after a launch.
__device__ inline bool is_last_block(unsigned* arrived) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {  // its fences also cover the writes before the barrier
    last = is_last(arrived, gridDim.x);
    if (last) *arrived = 0;
  }
  __syncthreads();
  return last;
}

}  // namespace adapruner::cuda
