// Histograms of digits, for several ranks that search for a threshold together.
#pragma once

#include "digits.cuh"

namespace adapruner::cuda {

// histogram [kDigits + 1], zeros before the launch: the number of keys in the range for each digit,
// and last the number of larger keys.
static __global__ void __launch_bounds__(kDigitThreads)
    digit_histogram_kernel(Values values, const int64_t* key_range, Count* histogram) {
  __shared__ unsigned mine[kDigits];
  const Search<uint32_t> search = search_in(key_range);
  for (int d = threadIdx.x; d < kDigits; d += blockDim.x) mine[d] = 0;
  __syncthreads();
  Count beyond = 0;
  values.each([&](uint32_t key) {
    if (key > search.range.high) {
      ++beyond;
    } else if (key >= search.range.low) {
      atomicAdd(&mine[digit_of(key, search.range.low, search.shift)], 1u);
    }
  });
  __syncthreads();
  for (int d = threadIdx.x; d < kDigits; d += blockDim.x) {
    if (mine[d] != 0) atomicAdd(&histogram[d], Count{mine[d]});
  }
  beyond = warp_reduce<Sum>(beyond);
  if (lane() == 0 && beyond != 0) atomicAdd(&histogram[kDigits], beyond);
}

// One block. If the rank is larger than the number of counted keys, the range stays as it is.
static __global__ void __launch_bounds__(kDigitThreads)
    narrowed_range_kernel(const int64_t* key_range, const Count* histogram, int64_t* narrower) {
  if (threadIdx.x < 3) narrower[threadIdx.x] = key_range[threadIdx.x];
  __syncthreads();
  const Search<uint32_t> search = search_in(key_range);
  find_digit_in_block(histogram, kDigits, search.rank, [&](const DigitRank& found) {
    write_range(narrowed(search, found, 0), narrower);
  });
}

void count_key_digits(const float* values, int64_t n, const int64_t* key_range, int64_t* histogram,
                      int multiprocessors, cudaStream_t stream) {
  auto* const counts = reinterpret_cast<Count*>(histogram);
  check(cudaMemsetAsync(histogram, 0, (kDigits + 1) * sizeof *histogram, stream));
  launch_digits(digit_histogram_kernel, n, 4, multiprocessors, 0, stream, Values{values, n},
                key_range, counts);
}

void narrow_key_range(const int64_t* key_range, const int64_t* histogram, int64_t* narrower,
                      cudaStream_t stream) {
  launch(narrowed_range_kernel, 1, kDigitThreads, 0, stream, key_range,
         reinterpret_cast<const Count*>(histogram), narrower);
}

}  // namespace adapruner::cuda
