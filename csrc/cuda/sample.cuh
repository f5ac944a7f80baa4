// Searches a sample of the values for two ranks that bracket a threshold.
#pragma once

#include "digits.cuh"

namespace adapruner::cuda {

constexpr uint32_t kBelowAll = kLowestKey - 1, kAboveAll = kHighestKey + 1;

constexpr int kSampleThreads = 1024;

// keys [size] ← the keys of the sample's members. The keys of NaN are outside those of all numbers.
// The last block to finish runs all rounds of the two searches, if the sample is small, and calls
// done(searches). `arrived` is 0 before and after.
template <typename Done>
__global__ void __launch_bounds__(kSampleThreads)
    search_sample_kernel(const float* values, int64_t n, int64_t size, uint32_t* keys, bool small,
                         Search<uint32_t> high, Search<uint32_t> low, unsigned* arrived,
                         Done done) {
  __shared__ Search<uint32_t> searches[2];
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += threads) {
    const uint32_t key = order_key(values[sample_index(i, size, n)]);
    keys[i] = key < kBelowAll ? kBelowAll : key > kAboveAll ? kAboveAll : key;
  }
  if (!is_last_block(arrived)) return;
  if (threadIdx.x == 0) {
    searches[0] = high;
    searches[1] = low;
  }
  __syncthreads();
  if (small) search_in_block<2>(keys, size, searches);
  if (threadIdx.x == 0) done(searches);
}

}  // namespace adapruner::cuda
