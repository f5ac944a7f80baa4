// The oldest samples as a bit mask. A histogram of the ages gives the age at which the cut lies. Of
// the samples of that age, those with the smallest hashes are kept. Searches by digits find them.
// No two samples have the same hash, so the result is exact. The host never waits.
#pragma once

#include "../math/permutation.h"
#include "../math/state.h"
#include "digits.cuh"
#include "selection.h"

namespace adapruner::cuda {

// Zeros at the start.
struct OldestState {
  int cut;  // candidates older than this are kept: −1 to kAges
  unsigned arrived;
  Search<uint64_t> search;  // among the candidates of age `cut`, by by_hash
  Count ages[kAges];
  Count digits[kDigits];
};

// Candidates. A thread processes 16 neighbours at a time.
struct Candidates {
  static constexpr int kPerThread = 16;
  const uint8_t* mask;
  const uint8_t* age;  // [n], aligned to 16 bytes
  int64_t n;
  uint64_t key;

  // Larger for a smaller hash.
  __device__ uint64_t by_hash(int64_t i) const {
    return ~sample_hash(static_cast<uint64_t>(i), key);
  }

  // Calls f(i, age) for each candidate, and done(first) after each group of kPerThread samples.
  template <typename F, typename Done>
  __device__ void each(const F& f, const Done& done) const {
    const int64_t stride = int64_t{gridDim.x} * blockDim.x * kPerThread;
    for (int64_t first = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kPerThread; first < n;
         first += stride) {
      const int64_t left = n - first;
      uint32_t bits = mask[first / 8];
      if (left > 8) bits |= static_cast<uint32_t>(mask[first / 8 + 1]) << 8;
      if (left >= kPerThread) {
        const auto ages = load_once<Pack<uint8_t>>(age + first);
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
          if (bits >> j & 1) f(first + j, int{ages[j]});
        }
      } else {
        // The end of the array, once in a call: a loop, so that its code stays short.
#pragma unroll 1
        for (int j = 0; j < left; ++j) {
          if (bits >> j & 1) f(first + j, int{age[first + j]});
        }
      }
      done(first);
    }
  }
};

static __global__ void __launch_bounds__(kDigitThreads)
    count_ages_kernel(Candidates candidates, int64_t count, OldestState* state) {
  __shared__ unsigned mine[kAges];
  for (int age = threadIdx.x; age < kAges; age += blockDim.x) mine[age] = 0;
  __syncthreads();
  candidates.each([&](int64_t, int age) { atomicAdd(&mine[age], 1u); }, [](int64_t) {});
  __syncthreads();
  for (int age = threadIdx.x; age < kAges; age += blockDim.x) {
    if (mine[age] != 0) atomicAdd(&state->ages[age], Count{mine[age]});
  }
  if (!is_last_block(&state->arrived)) return;
  if (threadIdx.x == 0) {  // if all are kept, or none
    state->cut = count == 0 ? kAges : -1;
    state->search = begin_search(Range<uint64_t>{0, 0}, 1, 1);
  }
  __syncthreads();
  find_digit_in_block(state->ages, kAges, count, [&](const DigitRank& found) {
    const auto inside = static_cast<int64_t>(state->ages[found.digit]);
    state->cut = found.digit;
    state->search = begin_search(Range<uint64_t>{0, ~uint64_t{0}}, found.rank, inside);
  });
}

// The candidates of the age at which the cut lies.
struct Equals {
  Candidates candidates;
  const OldestState* state;

  template <typename F>
  __device__ void each(const F& f) const {
    const int cut = state->cut;
    candidates.each(
        [&](int64_t i, int age) {
          if (age == cut) f(candidates.by_hash(i));
        },
        [](int64_t) {});
  }
};

static __global__ void __launch_bounds__(kDigitThreads)
    write_oldest_kernel(Candidates candidates, const OldestState* state, uint8_t* mask) {
  const int cut = state->cut;
  // All hashes from there on are kept once the search is decided.
  const uint64_t lowest = state->search.range.low;
  uint32_t kept = 0;
  candidates.each(
      [&](int64_t i, int age) {
        const bool keep = age > cut || (age == cut && candidates.by_hash(i) >= lowest);
        kept |= static_cast<uint32_t>(keep) << (i % Candidates::kPerThread);
      },
      [&](int64_t first) {
        mask[first / 8] = static_cast<uint8_t>(kept);
        if (candidates.n - first > 8) mask[first / 8 + 1] = static_cast<uint8_t>(kept >> 8);
        kept = 0;
      });
}

// mask [ceil(n / 8)] ← the `count` oldest candidates. age is aligned to 16 bytes.
void write_oldest(const uint8_t* candidates, const uint8_t* age, int64_t n, int64_t count,
                  uint64_t key, uint8_t* mask, int multiprocessors, const Scratch& scratch,
                  cudaStream_t stream) {
  if (n == 0) return;
  auto* const state = scratch_array<OldestState>(scratch, 1);
  check(cudaMemsetAsync(state, 0, sizeof *state, stream));
  const Candidates all{candidates, age, n, key};
  const auto start = [&](auto kernel, auto... arguments) {
    launch_digits(kernel, n, Candidates::kPerThread, multiprocessors, 0, stream, arguments...);
  };
  start(count_ages_kernel, all, count, state);
  const Equals equals{all, state};
  for (int round = 0; round < digit_rounds(64); ++round) {
    start(search_digits_kernel<1, uint64_t, Equals>, equals, &state->search,
          static_cast<Count*>(state->digits), &state->arrived);
  }
  start(write_oldest_kernel, all, state, mask);
}

}  // namespace adapruner::cuda
