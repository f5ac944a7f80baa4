// The kernels of the exact top-k with a quota for each segment, in the order in which they run. See
// csrc/cuda/segmented_topk.cuh.
#pragma once

#include "../math/gate.h"
#include "sample.cuh"
#include "segments.cuh"
#include "tiles.cuh"

namespace adapruner::cuda {

constexpr int kMostRounds = 80;

// Zeros at the start.
struct SegmentedState {
  ValueBins bins;
  long long nan_from_end;        // n − the index of the first NaN; 0 for none
  long long outside_from_end;    // the same for segments out of range
  long long quota_from_end;      // rows − the first row whose quota is out of range
  Count appended;                // entries of the band so far
  Count undecided[kMostRounds];  // after each round: values that are not decided
  unsigned arrived;
};

// Makes bins between two bounds that contain most values.
struct MakeBins {
  SegmentedState* state;
  int bins;

  __device__ void operator()(const Search<uint32_t>* searches) const {
    const float low = key_value(searches[1].range.low), high = key_value(searches[0].range.low);
    state->bins = value_bins(low, high, bins);
  }
};

// Two keys of 8 bytes are loaded together.
template <typename Entry>
struct alignas(16) RowRange : Range<Entry> {};

// Values with their segments, and the search of each row. If a search is decided, the high end of
// its range is 0, which is below all entries. So the range alone tells whether a value is kept.
template <typename Entry>
struct Rows {
  const float* values;  // [n], aligned to 16 bytes
  int64_t n;
  Segments segments;
  RowRange<Entry>* ranges;  // [rows]
  int64_t* ranks;           // [rows]
  uint8_t* shifts;          // [rows]
  Count* counts;            // [rows << bits], zeros between rounds
  int bits;

  __device__ int64_t rows() const { return segments.count + 1; }
  __device__ Entries<Entry> entries() const { return entries_of<Entry>(n); }
  __device__ static bool among(const Range<Entry>& range, Entry entry) {
    return entry >= range.low && entry <= range.high;
  }
  __device__ bool is_decided(int64_t row) const { return ranges[row].high == 0; }
  __device__ void decide(int64_t row, Entry lowest) const { ranges[row] = {{lowest, 0}}; }
  __device__ void put(int64_t row, const Search<Entry>& search) const {
    if (decided(search)) return decide(row, search.range.low);
    ranges[row] = {search.range};
    ranks[row] = search.rank;
    shifts[row] = static_cast<uint8_t>(search.shift);
  }
  __device__ int64_t slot(int64_t row, uint32_t digit) const { return (row << bits) + digit; }
};

// Adds 1 to the counts of four slots of each lane. −1 is no slot. If all slots of a warp are the
// same, as in sorted or equal data, one atomic adds all of them.
__device__ inline void count_slots(Count* counts, const int64_t* slots) {
  const int64_t first = __shfl_sync(kFullWarp, slots[0], 0);
  bool same = first >= 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) same = same && slots[j] == first;
  if (__all_sync(kFullWarp, same)) {
    if (lane() == 0) atomicAdd(&counts[slots[0]], Count{4 * kWarpSize});
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (slots[j] >= 0) atomicAdd(&counts[slots[j]], Count{1});
  }
}

// A round that counts all values by row and digit. In the first round, digits are bins of values.
// The first round also checks values and segments and, if wanted, adds to sums [2]. If there is
// room, counts are first collected in shared memory.
template <bool kFirst, bool kShared, typename Entry>
__global__ void __launch_bounds__(kDigitThreads)
    count_rows_kernel(Rows<Entry> rows, double slope, Count* sums, SegmentedState* state) {
  const int64_t counters = rows.rows() << rows.bits;
  unsigned* const mine = kShared ? dynamic_shared<unsigned>() : nullptr;
  if constexpr (kShared) {
    for (int64_t s = threadIdx.x; s < counters; s += blockDim.x) mine[s] = 0;
    __syncthreads();
  }
  const Entries<Entry> entries = rows.entries();
  const ValueBins bins = state->bins;
  int64_t gates = 0, open = 0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x * 4;
  const int64_t of_warp = (int64_t{blockIdx.x} * blockDim.x + warp() * kWarpSize) * 4;
  // The lanes of a warp stay together.
  for (int64_t first = of_warp; first < rows.n; first += stride) {
    const int64_t i = first + 4 * lane(), size = rows.n - i;
    uint32_t row[4] = {};
    const bool good = rows.segments.rows(i, size, row);
    const Pack<float> x = load_four(rows.values, rows.n, i);
    int64_t slots[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      slots[j] = -1;
      if (j >= size) continue;
      if constexpr (kFirst) {
        if (x[j] != x[j]) atomicMax(&state->nan_from_end, static_cast<long long>(rows.n - i - j));
        slots[j] = rows.slot(row[j], static_cast<uint32_t>(value_bin(bins, x[j])));
        if (sums != nullptr) {
          gates += gate_fixed(slope, x[j]);
          open += x[j] > 0;
        }
      } else {
        const RowRange<Entry> range = rows.ranges[row[j]];
        const Entry entry = entries.of(order_key(x[j]), i + j);
        if (!Rows<Entry>::among(range, entry)) continue;
        slots[j] = rows.slot(row[j], digit_of(entry, range.low, rows.shifts[row[j]]));
      }
    }
    if (kFirst && !good) {
      // The first segment out of range gives the largest number.
      for (int64_t j = i; j < std::min(i + 4, rows.n); ++j) {
        if (rows.segments.is_inside(rows.segments.at(j))) continue;
        atomicMax(&state->outside_from_end, static_cast<long long>(rows.n - j));
      }
    }
    if constexpr (kShared) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (slots[j] >= 0) atomicAdd(&mine[slots[j]], 1u);
      }
    } else {
      count_slots(rows.counts, slots);
    }
  }
  if (kFirst && sums != nullptr) {
    gates = warp_reduce<Sum>(gates);
    open = warp_reduce<Sum>(open);
    if (lane() == 0) {
      atomicAdd(&sums[0], static_cast<Count>(gates));
      atomicAdd(&sums[1], static_cast<Count>(open));
    }
  }
  if constexpr (kShared) {
    __syncthreads();
    for (int64_t s = threadIdx.x; s < counters; s += blockDim.x) {
      if (mine[s] != 0) atomicAdd(&rows.counts[s], Count{mine[s]});
    }
  }
}

// The search of a row after the first round. `inside` is the number of values in the bin of its
// threshold.
template <typename Entry, typename Counts>
__device__ Search<Entry> first_search(const Entries<Entry>& entries, const ValueBins& bins,
                                      int digit_bits, const DigitRank& found,
                                      const Counts& inside) {
  const int32_t bin = found.digit;
  const KeyRange keys{first_key_of_bin(bins, bin), first_key_of_bin(bins, bin + 1) - 1};
  return begin_search(entries.range(keys), found.rank, inside, digit_bits);
}

// Ends a round. The search of each row goes on in the digit that contains its rank, and counts
// become 0 again. One warp for each row. `round` counts from 0. quotas [rows − 1] is read in the
// first round.
template <bool kFirst, typename Entry>
__global__ void __launch_bounds__(kDigitThreads)
    narrow_rows_kernel(Rows<Entry> rows, const int64_t* quotas, int round, SegmentedState* state) {
  if (!kFirst && state->undecided[round - 1] == 0) return;
  const int digits = 1 << rows.bits, each = ceil_div(digits, kWarpSize);
  const int end = std::max(digits - lane() * each, 0), begin = std::max(end - each, 0);
  const int64_t warps = int64_t{gridDim.x} * (blockDim.x / kWarpSize);
  const Entry nothing = ~Entry{0};  // larger than any entry
  int64_t undecided = 0;
  for (int64_t row = int64_t{blockIdx.x} * (blockDim.x / kWarpSize) + warp(); row < rows.rows();
       row += warps) {
    Count* const counts = rows.counts + (row << rows.bits);
    int64_t mine = 0;
    for (int digit = begin; digit < end; ++digit) mine += static_cast<int64_t>(counts[digit]);
    const int64_t running = warp_running_sum(mine), larger = running - mine;
    const int64_t total = __shfl_sync(kFullWarp, running, kWarpSize - 1);
    int64_t rank = 0;
    if constexpr (kFirst) {
      if (row > 0) rank = quotas[row - 1];
      if ((rank < 0 || rank > total) && lane() == 0) {
        atomicMax(&state->quota_from_end, static_cast<long long>(rows.rows() - row));
      }
      if (lane() == 0) {  // keeps none, or all
        rows.decide(row, rank == 0 ? nothing : 0);
      }
      __syncwarp();
    } else {
      rank = rows.is_decided(row) ? 0 : rows.ranks[row];
      __syncwarp();
    }
    const bool all = kFirst && rank == total;
    if (larger < rank && rank <= larger + mine && !all) {
      DigitRank found = find_digit(counts + begin, end - begin, rank - larger);
      const auto inside = static_cast<int64_t>(counts[begin + found.digit]);
      found.digit += begin;
      Search<Entry> search;
      if constexpr (kFirst) {
        search = first_search(rows.entries(), state->bins, rows.bits, found, inside);
      } else {
        const Search<Entry> before{Range<Entry>{rows.ranges[row]}, rank, 0, rows.shifts[row]};
        search = narrowed(before, found, inside, rows.bits);
      }
      rows.put(row, search);
      if (!decided(search)) undecided += inside;
    }
    __syncwarp();
    for (int digit = begin; digit < end; ++digit) counts[digit] = 0;
  }
  undecided = block_reduce<Sum>(undecided, int64_t{0});
  if (threadIdx.x == 0) atomicAdd(&state->undecided[round], static_cast<Count>(undecided));
}

// Values that are not decided. They are stored, so that the other values need not be read again.
template <typename Entry>
struct RowBand {
  Entry* entries;  // [size]
  uint32_t* rows;  // [size]
  int64_t size;
};

// mask ← the values that are kept for certain. Appends the values that are not decided to the band,
// in any order.
template <typename Entry>
__global__ void __launch_bounds__(kTileThreads)
    split_rows_kernel(Rows<Entry> rows, RowBand<Entry> band, uint32_t* mask,
                      SegmentedState* state) {
  __shared__ Count append_at;
  const Entries<Entry> entries = rows.entries();
  const int64_t tiles = ceil_div<int64_t>(rows.n, kTile);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    uint32_t kept = 0, among = 0;
#pragma unroll 2
    for (int j = 0; j < kPerThread / 4; ++j) {
      const int64_t i = tile * kTile + TileValues::offset(4 * j), size = rows.n - i;
      uint32_t row[4] = {};
      if (size > 0) rows.segments.rows(i, size, row);
      const Pack<float> x = load_four(rows.values, rows.n, i);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (c >= size) continue;
        const RowRange<Entry> range = rows.ranges[row[c]];
        const Entry entry = entries.of(order_key(x[c]), i + c);
        const bool undecided = Rows<Entry>::among(range, entry);
        among |= static_cast<uint32_t>(undecided) << (4 * j + c);
        kept |= static_cast<uint32_t>(entry >= range.low && !undecided) << (4 * j + c);
      }
    }
    const int64_t word = tile * kTileWords + tile_word();
    const uint32_t bits = in_mask_order(kept);
    if (32 * word < rows.n) mask[word] = bits;
    int total;
    const int before = block_sum_before(__popc(among), total);
    if (threadIdx.x == 0 && total > 0) {
      append_at = atomicAdd(&state->appended, static_cast<Count>(total));
    }
    __syncthreads();
    int64_t at = static_cast<int64_t>(append_at) + before;
    for (; among != 0; among &= among - 1, ++at) {
      const int64_t i = tile * kTile + TileValues::offset(__ffs(static_cast<int>(among)) - 1);
      band.entries[at] = entries.of(order_key(rows.values[i]), i);
      band.rows[at] = rows.segments.row(rows.segments.at(i));
    }
    __syncthreads();
  }
}

// A round that counts the values of the band.
template <typename Entry>
__global__ void __launch_bounds__(kDigitThreads)
    count_band_kernel(Rows<Entry> rows, RowBand<Entry> band, int round,
                      const SegmentedState* state) {
  if (state->undecided[round - 1] == 0) return;
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < band.size; at += threads) {
    const uint32_t row = band.rows[at];
    const RowRange<Entry> range = rows.ranges[row];
    const Entry entry = band.entries[at];
    if (!Rows<Entry>::among(range, entry)) continue;
    const uint32_t digit = digit_of(entry, range.low, rows.shifts[row]);
    atomicAdd(&rows.counts[rows.slot(row, digit)], Count{1});
  }
}

// Sets the bits of the values of the band that are kept, after all searches are decided.
template <typename Entry>
__global__ void __launch_bounds__(kDigitThreads)
    keep_row_band_kernel(Rows<Entry> rows, RowBand<Entry> band, uint32_t* mask) {
  const Entries<Entry> entries = rows.entries();
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < band.size; at += threads) {
    if (band.entries[at] < rows.ranges[band.rows[at]].low) continue;
    const int64_t i = entries.index(band.entries[at]);
    atomicOr(&mask[i / 32], 1u << (i % 32));
  }
}

}  // namespace adapruner::cuda
