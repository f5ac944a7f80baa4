// The kernels of the exact top-k, in the order in which they run. See csrc/cuda/topk.cuh.
#pragma once

#include "../math/gate.h"
#include "sample.cuh"
#include "tiles.cuh"

namespace adapruner::cuda {

constexpr int kScanThreads = 1024;

// Number of values of a tile that equal each bound of the bracket.
struct TileTies {
  uint16_t high;
  uint16_t low;
};

// Data that the kernels pass on, in device memory. Zeros at the start. The host reads the part
// before `digits`.
template <typename Entry>
struct TopkState {
  Search<uint32_t> bounds[2];  // bounds of the bracket, the high one first: the keys range.low
  PassCounts counts;           // counts of the pass over all values
  Count sums[2];               // sums of the pass: gates, and the number of values > 0
  Count stored;                // entries of the band, including those that did not fit
  Count few;                   // entries that the first digit did not decide, if listed
  int64_t open;                // number of these entries if too many to list
  long long nan_from_end;      // n − the index of the first NaN; 0 for none
  PlaceRank found;             // position of the threshold; rank: among ties or in the band
  Search<Entry> band;
  int64_t last_tile;  // tile of the last tie that is kept
  int64_t last_kept;  // number of ties that are kept in this tile
  unsigned arrived;
  Count digits[2 * kDigits];
};

// Stores the bounds that the sample gives.
template <typename Entry>
struct KeepBounds {
  TopkState<Entry>* state;

  __device__ void operator()(const Search<uint32_t>* searches) const {
    state->bounds[0] = searches[0];
    state->bounds[1] = searches[1];
  }
};

// Prepares a second pass: resets the counts and sets the bounds.
template <typename Entry>
__global__ void begin_topk_kernel(TopkState<Entry>* state, Search<uint32_t> high,
                                  Search<uint32_t> low) {
  state->bounds[0] = high;
  state->bounds[1] = low;
  state->counts = {};
  state->stored = 0;
}

// The low bound ← the high one.
template <typename Entry>
__global__ void close_bracket_kernel(TopkState<Entry>* state) {
  state->bounds[1] = state->bounds[0];
}

// Blocks for each multiprocessor. Sums need more registers, and more arithmetic than time to read.
template <bool kSums>
constexpr int kScanBlocks = kSums ? 3 : 4;

// mask ← key ≥ the high bound. Appends the values strictly between the bounds to the band. Counts
// them, and the ties at the bounds in each tile. An open bound is NaN: no x is ≥ it, and every x is
// not ≤ it. A NaN among the values always counts as between the bounds. The bounds are in the state
// if `left`, otherwise they are `given`.
template <bool kSums, typename Entry>
__global__ void __launch_bounds__(kTileThreads, kScanBlocks<kSums>)
    scan_bracket_kernel(const float* values, int64_t n, int64_t k, double slope, uint32_t* mask,
                        TileTies* ties, Entry* band, int64_t capacity, TopkState<Entry>* state,
                        bool left, KeyRange given, Count* sums) {
  __shared__ Count warp_counts[kTileThreads / kWarpSize];
  __shared__ Count append_at;
  const uint32_t high_key = left ? state->bounds[0].range.low : given.high;
  const uint32_t low_key = left ? state->bounds[1].range.low : given.low;
  const float high = key_value(high_key), low = key_value(low_key);
  const Entries<Entry> entries = entries_of<Entry>(n);
  const int64_t tiles = ceil_div<int64_t>(n, kTile);
  PassCounts counts{};  // in thread 0: counts of this block
  int64_t gates = 0, open = 0;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    TileValues x;
    x.load(values, n, tile);
    const uint32_t from_high = x.word([&](float v) { return v >= high; });
    const uint32_t inside = x.word([&](float v) { return !(v <= low); }) & ~from_high;
    const uint32_t equal_high = x.word([&](float v) { return v == high; });
    const uint32_t equal_low = x.word([&](float v) { return v == low; });
    if constexpr (kSums) {
      open += __popc(x.word([](float v) { return v > 0; }));
      // Loads the values again, from the cache, so that the loop stays a loop. Unrolled, it would
      // take 30 KB of code.
#pragma unroll 1
      for (int j = 0; j < TileValues::kPacks; ++j) {
        const int64_t i = tile * kTile + TileValues::offset(4 * j);
        const Pack<float> four = load_four(values, n, i);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int64_t gate = gate_fixed(slope, four[c]);
          if (i + c < n) gates += gate;
        }
      }
    }
    const int64_t word = tile * kTileWords + tile_word();
    const uint32_t bits = in_mask_order(from_high);
    if (32 * word < n) mask[word] = bits;
    // Four counts of at most 8192 each in one number, so that one prefix sum is enough.
    const Count mine = Count(__popc(inside)) | Count(__popc(from_high)) << 16 |
                       Count(__popc(equal_high)) << 32 | Count(__popc(equal_low)) << 48;
    const Count running = warp_running_sum(mine);
    if (lane() == kWarpSize - 1) warp_counts[warp()] = running;
    __syncthreads();
    Count before = running - mine, total = 0;
#pragma unroll
    for (int w = 0; w < kTileThreads / kWarpSize; ++w) {
      if (w < warp()) before += warp_counts[w];
      total += warp_counts[w];
    }
    if (threadIdx.x == 0) {
      append_at = (total & 0xffff) == 0 ? 0 : atomicAdd(&state->stored, total & 0xffff);
      ties[tile] = {static_cast<uint16_t>(total >> 32), static_cast<uint16_t>(total >> 48)};
      counts.inside += total & 0xffff;
      counts.from_high += total >> 16 & 0xffff;
      counts.equal_high += total >> 32 & 0xffff;
      counts.equal_low += total >> 48;
    }
    __syncthreads();
    int64_t at = static_cast<int64_t>(append_at + (before & 0xffff));
    for (uint32_t rest = inside; rest != 0; rest &= rest - 1, ++at) {
      const int64_t i = tile * kTile + TileValues::offset(__ffs(static_cast<int>(rest)) - 1);
      const float v = values[i];
      if (v != v) atomicMax(&state->nan_from_end, static_cast<long long>(n - i));
      if (at < capacity) band[at] = entries.of(order_key(v), i);
    }
  }
  if constexpr (kSums) {
    gates = warp_reduce<Sum>(gates);
    open = warp_reduce<Sum>(open);
    if (lane() == 0) {
      atomicAdd(&state->sums[0], static_cast<Count>(gates));
      atomicAdd(&state->sums[1], static_cast<Count>(open));
    }
  }
  if (threadIdx.x == 0) {
    atomic_add(&state->counts.from_high, counts.from_high);
    atomic_add(&state->counts.inside, counts.inside);
    atomic_add(&state->counts.equal_high, counts.equal_high);
    atomic_add(&state->counts.equal_low, counts.equal_low);
  }
  if (!is_last_block(&state->arrived) || threadIdx.x != 0) return;
  if constexpr (kSums) {
    sums[0] = state->sums[0];
    sums[1] = state->sums[1];
  }
  PassCounts all = state->counts;
  if (low_key == high_key) all.equal_low = 0;
  PlaceRank found = find_place(all, k);
  if (all.inside > capacity && found.place != Place::kDone && found.place != Place::kAtHigh) {
    found = {Place::kOutside, 0};
  }
  state->found = found;
  const Range<Entry> range = entries.range({low_key + 1, high_key - 1});
  // A search that is already decided keeps the whole band, or has nothing to do.
  const bool open_search = found.place == Place::kInside;
  state->band = begin_search(range, open_search ? found.rank : all.inside, all.inside);
}

// The entries of the band, after the pass.
template <typename Entry>
struct Band {
  const Entry* entries;
  const TopkState<Entry>* state;

  template <typename F>
  __device__ void each(const F& f) const {
    Keys<Entry>{entries, state->counts.inside}.each(f);
  }
};

// Sets the bits of the entries of the band that are kept. If the search is decided, these are all
// entries from its range on. If few entries are in its range, the last block to finish completes
// the search. Otherwise only entries above the range are set, and `open` in the state is the number
// of entries in the range. few [most_few].
template <typename Entry>
__global__ void __launch_bounds__(kDigitThreads)
    keep_band_kernel(Band<Entry> band, int64_t n, Entry* few, int64_t most_few,
                     TopkState<Entry>* state, uint32_t* mask) {
  __shared__ Search<Entry> search;
  if (state->found.place != Place::kInside && state->found.place != Place::kAtLow) return;
  if (state->nan_from_end > 0) return;  // an error; NaN is in the band, but not in its range
  if (threadIdx.x == 0) search = state->band;
  __syncthreads();
  const Entries<Entry> entries = entries_of<Entry>(n);
  const Range<Entry> range = search.range;
  const int64_t inside = search.inside;
  const bool open = !decided(search), listed = open && inside <= most_few;
  const auto keep = [&](Entry entry) {
    const int64_t i = entries.index(entry);
    atomicOr(&mask[i / 32], 1u << (i % 32));
  };
  band.each([&](Entry entry) {
    if (entry < range.low) return;
    if (!open || entry > range.high) return keep(entry);
    if (listed) few[atomicAdd(&state->few, Count{1})] = entry;
  });
  if (!open || !is_last_block(&state->arrived)) return;
  if (threadIdx.x == 0) state->open = listed ? 0 : inside;
  if (!listed) return;
  search_in_block<1>(few, inside, &search);
  for (int64_t i = threadIdx.x; i < inside; i += blockDim.x) {
    if (few[i] >= search.range.low) keep(few[i]);
  }
}

// Finds the tile that contains the last tie to keep. One block.
template <typename Entry>
__global__ void find_last_tile_kernel(const TileTies* ties, int64_t tiles,
                                      TopkState<Entry>* state) {
  const Place place = state->found.place;
  if (place != Place::kAtHigh && place != Place::kAtLow) return;
  const bool at_high = place == Place::kAtHigh;
  const auto count = [&](int64_t tile) { return at_high ? ties[tile].high : ties[tile].low; };
  const int64_t each = ceil_div<int64_t>(tiles, blockDim.x);
  const int64_t begin = std::min<int64_t>(each * threadIdx.x, tiles),
                end = std::min<int64_t>(begin + each, tiles);
  int64_t mine = 0, total;
  for (int64_t tile = begin; tile < end; ++tile) mine += count(tile);
  int64_t left = state->found.rank - block_sum_before(mine, total);
  if (left <= 0 || left > mine) return;
  int64_t tile = begin;
  for (; left > count(tile); ++tile) left -= count(tile);
  state->last_tile = tile;
  state->last_kept = left;
}

// Keeps the first of the ties at a bound and clears the others.
template <typename Entry>
__global__ void __launch_bounds__(kTileThreads)
    keep_ties_kernel(const float* values, int64_t n, const TileTies* ties,
                     const TopkState<Entry>* state, uint32_t* mask) {
  __shared__ int tied_in_word[kTileWords];
  const Place place = state->found.place;
  if (place != Place::kAtHigh && place != Place::kAtLow) return;
  const bool at_high = place == Place::kAtHigh;
  const float bound = key_value(state->bounds[at_high ? 0 : 1].range.low);
  const int64_t tiles = ceil_div<int64_t>(n, kTile), last = state->last_tile;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    // At this point ties at the high bound are in the mask, and ties at the low bound are not.
    if (at_high ? tile < last : tile > last) continue;
    if ((at_high ? ties[tile].high : ties[tile].low) == 0) continue;
    TileValues x;
    x.load(values, n, tile);
    const uint32_t tied = in_mask_order(x.word([&](float v) { return v == bound; }));
    uint32_t kept = tile < last ? tied : 0;
    if (tile == last) {
      tied_in_word[tile_word()] = __popc(tied);
      __syncthreads();
      int64_t left = state->last_kept;
      for (int w = 0; w < tile_word(); ++w) left -= tied_in_word[w];
      kept = first_bits(tied, left);
    }
    const int64_t word = tile * kTileWords + tile_word();
    if (tied != 0) mask[word] = (mask[word] & ~tied) | kept;
  }
}

}  // namespace adapruner::cuda
