// Exact top-k with a quota for each segment, without a sort. As on the CPU, a histogram for each
// segment, over bins of values, tells which bin contains the segment's threshold. If these bins
// together contain few values, one more pass writes the mask for all values outside these bins and
// stores the values inside. Histograms of smaller and smaller ranges then decide them, for all
// segments at the same time. Entries combine key and index, so there are no ties: equal values only
// take more rounds. The host waits after the first round, to report bad values, segments or quotas,
// and to know how much memory the stored values take. It also waits after each further round that
// reads all values. Few inputs need one.
//
// Memory beyond the results:
//   histograms    at most 128 MB, or 16 bytes per segment with more than 8 million segments
//   per segment   25 bytes
//   band          12 bytes for each stored value: at most a sixteenth of the values (0.1 bytes per
//                 value if 1 % is stored) or 64 thousand
#pragma once

#include "segmented_topk_kernels.cuh"
#include "selection.h"

namespace adapruner::cuda {

// Number of bits of a digit. `shared`: the shared memory of a block can hold the histograms of all
// rows.
struct SegmentedPlan {
  int bits;
  bool shared;
};

// Number of counters in shared memory: 32 KB of them, or 96 KB, of which a multiprocessor can hold
// two. The larger number is used if the device has room and a block has enough values to make use
// of it.
constexpr int64_t shared_counters(int64_t n, int multiprocessors, int64_t block_shared) {
  constexpr int64_t kUsual = 8192, kMost = 3 * kUsual, kValuesEach = 4, kStatic = 2048;
  const bool fit = kMost * static_cast<int64_t>(sizeof(unsigned)) + kStatic <= block_shared;
  return fit && n / (2 * multiprocessors) >= kValuesEach * kMost ? kMost : kUsual;
}

inline SegmentedPlan plan_segmented(int64_t n, int64_t rows, int multiprocessors,
                                    int64_t block_shared) {
  constexpr int64_t kInCache = int64_t{1} << 20, kMost = int64_t{1} << 24;
  const int64_t in_shared = shared_counters(n, multiprocessors, block_shared);
  int bits = 4;
  while (bits < 9 && rows << (bits + 1) <= std::min(kInCache, 4 * n)) ++bits;
  // One bit less if the counters then fit shared memory.
  if (bits >= 8 && rows << 8 <= in_shared) bits = std::min(bits, rows << 9 <= in_shared ? 9 : 8);
  while (bits > 1 && rows << bits > kMost) --bits;
  return {bits, rows << bits <= in_shared};
}

template <typename Entry>
class SegmentedTopk {
 public:
  SegmentedTopk(const float* values, int64_t n, const Segments& segments, const int64_t* quotas,
                uint32_t* mask, int multiprocessors, const Scratch& scratch, cudaStream_t stream)
      : values_(values),
        n_(n),
        quotas_(quotas),
        mask_(mask),
        multiprocessors_(multiprocessors),
        scratch_(scratch),
        stream_(stream),
        plan_(plan_segmented(n, segments.count + 1, multiprocessors, most_block_shared())),
        counters_((segments.count + 1) << plan_.bits),
        state_(scratch_array<SegmentedState>(scratch, 1)),
        found_(scratch_array<SegmentedState>(scratch, 1, Memory::kPinned)),
        rows_{values,
              n,
              segments,
              scratch_array<RowRange<Entry>>(scratch, segments.count + 1),
              scratch_array<int64_t>(scratch, segments.count + 1),
              scratch_array<uint8_t>(scratch, segments.count + 1),
              scratch_array<Count>(scratch, counters_),
              plan_.bits} {}

  SegmentedErrors run(double slope, int64_t* sums) {
    check(cudaMemsetAsync(state_, 0, sizeof *state_, stream_));
    check(cudaMemsetAsync(rows_.counts, 0, counters_ * sizeof *rows_.counts, stream_));
    if (sums != nullptr) check(cudaMemsetAsync(sums, 0, 2 * sizeof *sums, stream_));
    choose_bins();
    count<true>(slope, reinterpret_cast<Count*>(sums));
    narrow<true>();
    const SegmentedState& found = read();
    SegmentedErrors errors;
    if (found.nan_from_end > 0) errors.nan = n_ - found.nan_from_end;
    if (found.outside_from_end > 0) errors.outside = n_ - found.outside_from_end;
    if (found.quota_from_end > 0) errors.quota = rows_.segments.count - found.quota_from_end;
    if (errors.nan >= 0 || errors.outside >= 0 || errors.quota >= 0) return errors;
    while (static_cast<int64_t>(found.undecided[round_ - 1]) > band_limit()) {
      count<false>(0, nullptr);
      narrow<false>();
      read();
    }
    decide(static_cast<int64_t>(found.undecided[round_ - 1]));
    return errors;
  }

 private:
  int64_t band_limit() const { return std::max(n_ / 16, int64_t{1} << 16); }

  template <typename... Parameters, typename... Arguments>
  void start_digits(void (*kernel)(Parameters...), int64_t n, size_t shared_bytes,
                    Arguments... arguments) {
    launch_digits(kernel, n, 4, multiprocessors_, shared_bytes, stream_, arguments...);
  }

  // Bounds that contain most values, for the bins of the first histogram.
  void choose_bins() {
    const int64_t size = std::min<int64_t>(n_, 4096);
    if (size == 0) return;
    auto* const sample = scratch_array<uint32_t>(scratch_, size);
    const KeyRange all{kBelowAll, kAboveAll};
    launch_strided(search_sample_kernel<MakeBins>, size, kSampleThreads, multiprocessors_,
                   kSampleThreads, stream_, values_, n_, size, sample, true,
                   begin_search(all, size / 200 + 1, size),
                   begin_search(all, size - size / 200, size), &state_->arrived,
                   MakeBins{state_, 1 << plan_.bits});
  }

  template <bool kFirst>
  void count(double slope, Count* sums) {
    const auto kernel = plan_.shared ? count_rows_kernel<kFirst, true, Entry>
                                     : count_rows_kernel<kFirst, false, Entry>;
    const size_t shared = plan_.shared ? counters_ * sizeof(unsigned) : 0;
    start_digits(kernel, n_, shared, rows_, slope, sums, state_);
  }

  template <bool kFirst>
  void narrow() {
    launch_strided(narrow_rows_kernel<kFirst, Entry>, rows_.segments.count + 1,
                   kDigitThreads / kWarpSize, multiprocessors_, kDigitThreads, stream_, rows_,
                   quotas_, round_, state_);
    ++round_;
  }

  const SegmentedState& read() {
    check(cudaMemcpyAsync(found_, state_, sizeof *state_, cudaMemcpyDeviceToHost, stream_));
    check(cudaStreamSynchronize(stream_));
    return *found_;
  }

  // Writes the mask. `size` is the number of values in the band.
  void decide(int64_t size) {
    const RowBand<Entry> band{scratch_array<Entry>(scratch_, size),
                              scratch_array<uint32_t>(scratch_, size), size};
    launch_strided(split_rows_kernel<Entry>, ceil_div<int64_t>(n_, kTile), 1, multiprocessors_,
                   kTileThreads, stream_, rows_, band, mask_, state_);
    if (size == 0) return;
    // The bins of the first round may be as wide as all keys.
    const int rounds = 1 + digit_rounds(32 + entries_of<Entry>(n_).index_bits, plan_.bits);
    while (round_ < rounds) {
      start_digits(count_band_kernel<Entry>, size, 0, rows_, band, round_, state_);
      narrow<false>();
    }
    start_digits(keep_row_band_kernel<Entry>, size, 0, rows_, band, mask_);
  }

  const float* values_;
  int64_t n_;
  const int64_t* quotas_;
  uint32_t* mask_;
  int multiprocessors_;
  const Scratch& scratch_;
  cudaStream_t stream_;
  SegmentedPlan plan_;
  int64_t counters_;
  int round_ = 0;
  // On the device.
  SegmentedState* state_;
  SegmentedState* found_;  // on the host
  Rows<Entry> rows_;
};

// The quotas[s] largest values of each segment s, as a mask of words as in topk_mask. quotas
// [count] is on the device. sums are as in topk_mask. Mask and sums are complete if there is no
// error.
SegmentedErrors select_segmented(const float* values, int64_t n, const Integers& segments,
                                 int64_t count, const int64_t* quotas, double slope, uint32_t* mask,
                                 int64_t* sums, int multiprocessors, const Scratch& scratch,
                                 cudaStream_t stream) {
  const auto select = [&](auto entry) {
    SegmentedTopk<decltype(entry)> topk(values, n, {segments, count}, quotas, mask, multiprocessors,
                                        scratch, stream);
    return topk.run(slope, sums);
  };
  return n <= int64_t{1} << 32 ? select(uint64_t{}) : select(uint128_t{});
}

}  // namespace adapruner::cuda
