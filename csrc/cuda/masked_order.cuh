// The next samples of an epoch's order: a stretch of its places is permuted in parallel and marked,
// a bit for each place whose sample is in the mask, and the places that are marked are compacted.
// How long a stretch must be is told by the share that the last one kept, so that two mostly do.
#pragma once

#include "../math/permutation.h"
#include "compact.cuh"

namespace adapruner::cuda {

constexpr int64_t kShortStretch = int64_t{1} << 16, kLongStretch = int64_t{1} << 25;

// How many places to look at for `wanted` samples, where `kept` of the `seen` places before were.
inline int64_t stretch_length(int64_t wanted, int64_t kept, int64_t seen) {
  const double share = seen == 0 ? 1 : static_cast<double>(kept) / static_cast<double>(seen);
  const double places = static_cast<double>(wanted) / std::max(share, 1e-9) * 1.02;
  const auto most = static_cast<double>(kLongStretch);
  return std::max(kShortStretch, static_cast<int64_t>(std::min(places, most)));
}

struct PermutedPlace {
  Permutation permutation;
  int64_t position;  // of the stretch's first place

  __device__ int64_t operator()(int64_t place) const {
    return static_cast<int64_t>(permuted(permutation, static_cast<uint64_t>(position + place)));
  }
};

// marks: bit for each of `places` places, in whole words.
static __global__ void __launch_bounds__(kCompactThreads)
    mark_places_kernel(PermutedPlace sample_at, int64_t places, const uint8_t* mask,
                       uint32_t* marks) {
  const int64_t warps = int64_t{gridDim.x} * (kCompactThreads / kWarpSize);
  const int64_t words = ceil_div<int64_t>(places, 32);
  for (int64_t w = int64_t{blockIdx.x} * (kCompactThreads / kWarpSize) + warp(); w < words;
       w += warps) {
    const int64_t place = 32 * w + lane();
    bool kept = false;
    if (place < places) {
      const int64_t sample = sample_at(place);
      kept = mask[sample / 8] >> (sample % 8) & 1;
    }
    const unsigned bits = __ballot_sync(kFullWarp, kept);
    if (lane() == 0) marks[w] = bits;
  }
}

// indices ← the next samples from `position` on, `count` or those that are left, of n; all of it on
// the device but what is returned. Waits for the stream after every stretch.
OrderEnd write_order(const uint8_t* mask, int64_t n, uint64_t key, int64_t position, int64_t count,
                     int64_t* indices, int multiprocessors, const Scratch& scratch,
                     cudaStream_t stream) {
  if (count == 0 || position == n) return {0, position};
  const Permutation permutation = make_permutation(static_cast<uint64_t>(n), key);
  const int64_t room = std::min(n - position, kLongStretch);
  auto* const marks = scratch_array<uint32_t>(scratch, ceil_div<int64_t>(room, 32));
  const CompactScratch compacting(scratch, room);
  auto* const found = scratch_array<Compacted>(scratch, 1, Memory::kPinned);
  int64_t kept = 0, last_kept = 0, last_seen = 0;
  while (kept < count && position < n) {
    const int64_t wanted = count - kept;
    const int64_t places = std::min(n - position, stretch_length(wanted, last_kept, last_seen));
    const PermutedPlace sample_at{permutation, position};
    launch_strided(mark_places_kernel, places, kCompactThreads, multiprocessors, kCompactThreads,
                   stream, sample_at, places, mask, marks);
    compact(Bits{marks, places}, compacting, sample_at, wanted, indices + kept, multiprocessors,
            stream);
    check(cudaMemcpyAsync(found, compacting.found, sizeof *found, cudaMemcpyDeviceToHost, stream));
    check(cudaStreamSynchronize(stream));
    if (found->total >= wanted) return {count, position + found->stop};
    kept += found->total;
    position += places;
    last_kept = found->total;
    last_seen = places;
  }
  return {kept, position};
}

}  // namespace adapruner::cuda
