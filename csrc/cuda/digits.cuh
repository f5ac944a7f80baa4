// Histograms of digits, and searches with them. Each round counts the keys of a range by their next
// digit and narrows the range to the digit that contains the rank. The last block to finish narrows
// the range, so that rounds follow one another without the host. Once a search is decided, its
// remaining rounds return at once.
#pragma once

#include "../math/topk.h"
#include "scan.cuh"

namespace adapruner::cuda {

constexpr int kDigitThreads = 256;

// Number of rounds after which a search among keys of `bits` bits is always decided.
constexpr int digit_rounds(int bits, int digit_bits = kDigitBits) {
  return ceil_div(bits, digit_bits);
}

// Number of blocks for a pass over n values. Each thread processes `per_thread` values at a time.
// No block has 2³² values, so that its counts fit 32 bits.
inline unsigned digit_blocks(int64_t n, int per_thread, int multiprocessors, int resident) {
  const unsigned usual =
      strided_blocks(n, int64_t{kDigitThreads} * per_thread, multiprocessors, resident);
  return std::max(usual, static_cast<unsigned>(ceil_div(n, int64_t{1} << 31)));
}

// Launches a pass with digit_blocks.
template <typename... Parameters, typename... Arguments>
void launch_digits(void (*kernel)(Parameters...), int64_t n, int per_thread, int multiprocessors,
                   size_t shared_bytes, cudaStream_t stream, Arguments... arguments) {
  const int resident = resident_blocks(kernel, kDigitThreads, shared_bytes);
  launch(kernel, digit_blocks(n, per_thread, multiprocessors, resident), kDigitThreads,
         shared_bytes, stream, arguments...);
}

// Values to count by their keys. NaN is skipped.
struct Values {
  const float* values;  // [n], aligned to 16 bytes
  int64_t n;

  template <typename F>
  __device__ void each(const F& f) const {
    const auto visit = [&](float x) {
      if (x == x) f(order_key(x));
    };
    const int64_t threads = int64_t{gridDim.x} * blockDim.x;
    const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    for (int64_t i = 4 * first; i < n; i += 4 * threads) {
      if (i + 4 <= n) {
        const auto x = load_once<Pack<float>>(values + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) visit(x[j]);
      } else {
        for (int64_t j = i; j < n; ++j) visit(values[j]);
      }
    }
  }
};

// Keys to count.
template <typename Key>
struct Keys {
  const Key* keys;
  int64_t n;

  template <typename F>
  __device__ void each(const F& f) const {
    const int64_t threads = int64_t{gridDim.x} * blockDim.x;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += threads) {
      f(keys[i]);
    }
  }
};

// Finds the digit and rank of the rank-th largest key, with a whole block. The one thread that
// finds it calls f(found). If the rank is not in [1, sum of the counts], no thread does.
template <typename T, typename F>
__device__ void find_digit_in_block(const T* counts, int digits, int64_t rank, const F& f) {
  const int each = ceil_div(digits, static_cast<int>(blockDim.x));
  const int end = std::max(digits - static_cast<int>(threadIdx.x) * each, 0);
  const int begin = std::max(end - each, 0);
  int64_t mine = 0, total;
  for (int digit = begin; digit < end; ++digit) mine += static_cast<int64_t>(counts[digit]);
  const int64_t larger = block_sum_before(mine, total);
  if (larger < rank && rank <= larger + mine) {
    const DigitRank found = find_digit(counts + begin, end - begin, rank - larger);
    f(DigitRank{begin + found.digit, found.rank});
  }
}

// Counts a key by the next digit of every search whose range contains it. counts [kSearches ·
// kDigits] is in shared memory.
template <int kSearches, typename Key>
__device__ void count_digits(const Search<Key>* searches, Key key, unsigned* counts) {
#pragma unroll
  for (int s = 0; s < kSearches; ++s) {
    const Range<Key>& range = searches[s].range;
    if (key < range.low || key > range.high) continue;
    atomicAdd(&counts[s * kDigits + digit_of(key, range.low, searches[s].shift)], 1u);
  }
}

// One round of kSearches searches among the same keys. `counts` [kSearches · kDigits] is 0 before
// and after it.
template <int kSearches, typename Key, typename Source>
__global__ void __launch_bounds__(kDigitThreads)
    search_digits_kernel(Source source, Search<Key>* searches, Count* counts, unsigned* arrived) {
  __shared__ unsigned mine[kSearches * kDigits];
  bool all_decided = true;
  Search<Key> search[kSearches];
#pragma unroll
  for (int s = 0; s < kSearches; ++s) {
    search[s] = searches[s];
    all_decided = all_decided && decided(search[s]);
  }
  if (all_decided) return;
  for (int d = threadIdx.x; d < kSearches * kDigits; d += blockDim.x) mine[d] = 0;
  __syncthreads();
  source.each([&](Key key) { count_digits<kSearches>(search, key, mine); });
  __syncthreads();
  for (int d = threadIdx.x; d < kSearches * kDigits; d += blockDim.x) {
    if (mine[d] != 0) atomicAdd(&counts[d], Count{mine[d]});
  }
  if (!is_last_block(arrived)) return;
#pragma unroll
  for (int s = 0; s < kSearches; ++s) {
    if (decided(search[s])) continue;
    Count* const found_counts = counts + s * kDigits;
    find_digit_in_block(found_counts, kDigits, search[s].rank, [&](const DigitRank& found) {
      const auto inside = static_cast<int64_t>(found_counts[found.digit]);
      searches[s] = narrowed(search[s], found, inside);
    });
  }
  __syncthreads();
  for (int d = threadIdx.x; d < kSearches * kDigits; d += blockDim.x) counts[d] = 0;
}

// All rounds of kSearches searches among keys [n], by one block. The searches are in shared memory.
template <int kSearches, typename Key>
__device__ void search_in_block(const Key* keys, int64_t n, Search<Key>* searches) {
  __shared__ unsigned counts[kSearches * kDigits];
  for (;;) {
    bool all_decided = true;
#pragma unroll
    for (int s = 0; s < kSearches; ++s) all_decided = all_decided && decided(searches[s]);
    if (all_decided) return;
    for (int d = threadIdx.x; d < kSearches * kDigits; d += blockDim.x) counts[d] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      count_digits<kSearches>(searches, keys[i], counts);
    }
    __syncthreads();
    for (int s = 0; s < kSearches; ++s) {
      if (decided(searches[s])) continue;
      const unsigned* const of_search = counts + s * kDigits;
      find_digit_in_block(of_search, kDigits, searches[s].rank, [&](const DigitRank& found) {
        searches[s] = narrowed(searches[s], found, of_search[found.digit]);
      });
    }
    __syncthreads();
  }
}

}  // namespace adapruner::cuda
