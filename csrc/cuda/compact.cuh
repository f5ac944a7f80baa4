// The places of the bits that are set, in their order: tiles of the mask are counted, one block
// sums up the counts, and every tile writes from where those before it end.
#pragma once

#include "scan.cuh"
#include "selection.h"

namespace adapruner::cuda {

constexpr int kCompactThreads = 256, kScanThreads = 1024;
constexpr int kCompactTile = 32 * kCompactThreads;  // bits: a word for each thread of a block

// What a compaction found, on the device.
struct Compacted {
  int64_t total;  // bits set
  int64_t stop;   // the place after the last that was written, where `limit` were
};

// The first n bits of a mask.
struct Bits {
  const uint32_t* words;
  int64_t n;

  __device__ uint32_t word(int64_t w) const {
    const int64_t left = n - 32 * w;
    if (left <= 0) return 0;
    return left >= 32 ? words[w] : words[w] & ((1u << left) - 1);
  }
};

// A warp for each tile.
static __global__ void __launch_bounds__(kCompactThreads)
    count_bits_kernel(Bits bits, int64_t tiles, uint32_t* counts) {
  const int64_t warps = int64_t{gridDim.x} * (kCompactThreads / kWarpSize);
  for (int64_t tile = int64_t{blockIdx.x} * (kCompactThreads / kWarpSize) + warp(); tile < tiles;
       tile += warps) {
    int count = 0;
#pragma unroll
    for (int i = 0; i < kCompactThreads / kWarpSize; ++i) {
      count += __popc(bits.word(tile * kCompactThreads + i * kWarpSize + lane()));
    }
    count = warp_reduce<Sum>(count);
    if (lane() == 0) counts[tile] = static_cast<uint32_t>(count);
  }
}

// starts[tile] ← the sum of the counts of the tiles before it; found.total ← that of all. One
// block.
static __global__ void __launch_bounds__(kScanThreads)
    sum_counts_kernel(const uint32_t* counts, int64_t tiles, int64_t* starts, Compacted* found) {
  const int64_t each = ceil_div<int64_t>(tiles, blockDim.x);
  const int64_t begin = std::min<int64_t>(each * threadIdx.x, tiles),
                end = std::min<int64_t>(begin + each, tiles);
  int64_t mine = 0, total;
  for (int64_t tile = begin; tile < end; ++tile) mine += counts[tile];
  int64_t start = block_sum_before(mine, total);
  for (int64_t tile = begin; tile < end; ++tile) {
    starts[tile] = start;
    start += counts[tile];
  }
  if (threadIdx.x == 0) found->total = total;
}

struct SamePlace {
  __device__ int64_t operator()(int64_t place) const { return place; }
};

// out[rank] ← index_at(place) of the first `limit` bits set. A tile's places are gathered in shared
// memory, so that neighbours write neighbours.
template <typename IndexAt>
__global__ void __launch_bounds__(kCompactThreads)
    write_places_kernel(Bits bits, int64_t tiles, const int64_t* starts, IndexAt index_at,
                        int64_t limit, int64_t* out, Compacted* found) {
  __shared__ uint16_t places[kCompactTile];
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    uint32_t word = bits.word(tile * kCompactThreads + threadIdx.x);
    int count;
    int rank = block_sum_before(__popc(word), count);
    for (; word != 0; word &= word - 1) {
      places[rank++] = static_cast<uint16_t>(32 * threadIdx.x + __ffs(static_cast<int>(word)) - 1);
    }
    __syncthreads();
    const int64_t start = starts[tile], wanted = limit - start;
    const int end = static_cast<int>(std::min<int64_t>(static_cast<int64_t>(count), wanted));
    for (int r = threadIdx.x; r < end; r += kCompactThreads) {
      const int64_t place = tile * kCompactTile + places[r];
      out[start + r] = index_at(place);
      if (r + 1 == wanted) found->stop = place + 1;
    }
    __syncthreads();
  }
}

// What a compaction keeps on the device between its kernels.
struct CompactScratch {
  CompactScratch(const Scratch& scratch, int64_t n)
      : counts(scratch_array<uint32_t>(scratch, ceil_div<int64_t>(n, kCompactTile))),
        starts(scratch_array<int64_t>(scratch, ceil_div<int64_t>(n, kCompactTile))),
        found(scratch_array<Compacted>(scratch, 1)) {}

  uint32_t* counts;
  int64_t* starts;
  Compacted* found;
};

template <typename IndexAt>
void compact(const Bits& bits, const CompactScratch& scratch, const IndexAt& index_at,
             int64_t limit, int64_t* out, int multiprocessors, cudaStream_t stream) {
  const int64_t tiles = ceil_div<int64_t>(bits.n, kCompactTile);
  launch_strided(count_bits_kernel, tiles, kCompactThreads / kWarpSize, multiprocessors,
                 kCompactThreads, stream, bits, tiles, scratch.counts);
  launch(sum_counts_kernel, 1, kScanThreads, 0, stream, scratch.counts, tiles, scratch.starts,
         scratch.found);
  launch_strided(write_places_kernel<IndexAt>, tiles, 1, multiprocessors, kCompactThreads, stream,
                 bits, tiles, scratch.starts, index_at, limit, out, scratch.found);
}

}  // namespace adapruner::cuda
