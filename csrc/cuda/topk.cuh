// Exact top-k without a sort, in little more than one read of the values. As on the CPU, a sample
// brackets the threshold; one pass writes the mask outside the bracket and stores what lies inside,
// the band, some 0.4–2 % of all; searches by digits decide the band exactly, and a scan over tiles
// ranks ties at a bound, which may be most of the data. All decisions on the way are the device's:
// kernels with nothing to do return at once. The host waits once, at the end, to tell of a NaN; it
// learns then, too, whether the sample misled (values in an order made to do so). Only then digits
// of all values find the threshold, and the pass is done again.
//
// Integers are all that is added up, and what atomics append in any order is ranked by keys and
// indices: the result does not depend on the order of blocks.
#pragma once

#include "compact.cuh"
#include "topk_kernels.cuh"

namespace adapruner::cuda {

struct TopkPlan {
  int64_t sample;              // its size, 0 for none
  Search<uint32_t> bounds[2];  // the searches in the sample for the bracket, or the bracket itself
  int64_t capacity;            // of the band
};

// k in [0, n], n > 0.
inline TopkPlan plan_topk(int64_t n, int64_t k) {
  const auto fixed = [](uint32_t key) { return begin_search(KeyRange{key, key}, 1, 1); };
  // Nothing or all: a bracket that nothing but NaN is in.
  if (k == 0) return {0, {fixed(kAboveAll), fixed(kHighestKey)}, 0};
  if (k == n) return {0, {fixed(kLowestKey), fixed(kHighestKey)}, 0};
  TopkPlan plan{sample_size(n), {fixed(kAboveAll), fixed(kBelowAll)}, n};
  if (plan.sample == 0) return plan;
  SampleRanks ranks = bracket_ranks(k, n, plan.sample);
  const KeyRange all{kBelowAll, kAboveAll};
  if (ranks.high >= 1) plan.bounds[0] = begin_search(all, ranks.high, plan.sample);
  if (ranks.low <= plan.sample) plan.bounds[1] = begin_search(all, ranks.low, plan.sample);
  // Half as many again as are expected.
  const double share =
      static_cast<double>(std::min(ranks.low, plan.sample) - std::max<int64_t>(ranks.high, 0)) /
      static_cast<double>(plan.sample);
  const auto roomy = static_cast<int64_t>(1.5 * share * static_cast<double>(n)) + kTile;
  plan.capacity = std::min(n, roomy);
  return plan;
}

template <typename Entry>
class Topk {
 public:
  Topk(const float* values, int64_t n, int64_t k, uint32_t* mask, int multiprocessors,
       const Scratch& scratch, cudaStream_t stream)
      : values_(values),
        n_(n),
        k_(k),
        mask_(mask),
        multiprocessors_(multiprocessors),
        stream_(stream),
        plan_(plan_topk(n, k)),
        tiles_(ceil_div<int64_t>(n, kTile)),
        sample_(scratch_array<uint32_t>(scratch, plan_.sample)),
        ties_(scratch_array<TileTies>(scratch, tiles_)),
        band_(scratch_array<Entry>(scratch, plan_.capacity)),
        state_(scratch_array<TopkState<Entry>>(scratch, 1)) {}

  int64_t run(double slope, int64_t* sums) {
    check(cudaMemsetAsync(state_, 0, sizeof *state_, stream_));
    if (sums != nullptr) check(cudaMemsetAsync(sums, 0, 2 * sizeof *sums, stream_));
    begin(plan_.bounds[0], plan_.bounds[1]);
    if (plan_.sample > 0) bracket_by_sample();
    scan(slope, reinterpret_cast<Count*>(sums));
    keep_band();
    keep_ties();
    TopkState<Entry> found;
    check(cudaMemcpyAsync(&found, state_, offsetof(TopkState<Entry>, digits),
                          cudaMemcpyDeviceToHost, stream_));
    check(cudaStreamSynchronize(stream_));
    if (found.nan_from_end > 0) return n_ - found.nan_from_end;
    if (found.found.place == Place::kOutside) select_by_digits();
    return -1;
  }

 private:
  template <typename... Parameters, typename... Arguments>
  void start(void (*kernel)(Parameters...), unsigned blocks, int threads, Arguments... arguments) {
    launch(kernel, blocks, threads, 0, stream_, arguments...);
  }

  void begin(const Search<uint32_t>& high, const Search<uint32_t>& low) {
    start(begin_topk_kernel<Entry>, 1, 1, state_, high, low);
  }

  void bracket_by_sample() {
    const unsigned blocks = digit_blocks(plan_.sample, 4, multiprocessors_);
    start(sample_keys_kernel, blocks, kDigitThreads, values_, n_, plan_.sample, sample_);
    search<2>(Keys<uint32_t>{sample_, plan_.sample}, blocks, state_->bounds);
  }

  // Rounds enough for any outcome.
  template <int kSearches, typename Key, typename Source>
  void search(const Source& source, unsigned blocks, Search<Key>* searches) {
    const int bits = std::is_same_v<Key, uint32_t> ? 32 : 32 + entries_of<Entry>(n_).index_bits;
    for (int round = 0; round < digit_rounds(bits); ++round) {
      start(search_digits_kernel<kSearches, Key, Source>, blocks, kDigitThreads, source, searches,
            state_->digits, &state_->arrived);
    }
  }

  unsigned tile_blocks(int resident) const {
    return strided_blocks(tiles_, 1, multiprocessors_, resident);
  }

  void scan(double slope, Count* sums) {
    const auto kernel =
        sums != nullptr ? scan_bracket_kernel<true, Entry> : scan_bracket_kernel<false, Entry>;
    start(kernel, tile_blocks(sums != nullptr ? kScanBlocks<true> : kScanBlocks<false>),
          kTileThreads, values_, n_, k_, slope, mask_, ties_, band_, plan_.capacity, state_, sums);
  }

  void keep_band() {
    if (plan_.capacity == 0) return;
    const Band<Entry> band{band_, state_};
    const unsigned blocks = digit_blocks(plan_.capacity, 4, multiprocessors_);
    search<1>(band, blocks, &state_->band);
    start(keep_band_kernel<Entry>, blocks, kDigitThreads, band, n_, mask_);
  }

  void keep_ties() {
    start(find_last_tile_kernel<Entry>, 1, kScanThreads, ties_, tiles_, state_);
    start(keep_ties_kernel<Entry>, tile_blocks(8), kTileThreads, values_, n_, ties_, state_, mask_);
  }

  // The threshold is the key at both bounds: all others are decided by the pass, its ties as ever.
  void select_by_digits() {
    const Search<uint32_t> all = begin_search(KeyRange{kLowestKey, kHighestKey}, k_, n_);
    begin(all, all);
    search<1>(Values{values_, n_}, digit_blocks(n_, 4, multiprocessors_), state_->bounds);
    start(close_bracket_kernel<Entry>, 1, 1, state_);
    scan(0, nullptr);
    keep_ties();
  }

  const float* values_;
  int64_t n_;
  int64_t k_;
  uint32_t* mask_;
  int multiprocessors_;
  cudaStream_t stream_;
  TopkPlan plan_;
  int64_t tiles_;
  // On the device.
  uint32_t* sample_;
  TileTies* ties_;
  Entry* band_;
  TopkState<Entry>* state_;
};

int64_t topk_mask(const float* values, int64_t n, int64_t k, double slope, uint32_t* mask,
                  int64_t* sums, int multiprocessors, const Scratch& scratch, cudaStream_t stream) {
  if (n == 0) {
    if (sums != nullptr) check(cudaMemsetAsync(sums, 0, 2 * sizeof *sums, stream));
    return -1;
  }
  const auto select = [&](auto entry) {
    Topk<decltype(entry)> topk(values, n, k, mask, multiprocessors, scratch, stream);
    return topk.run(slope, sums);
  };
  return n <= int64_t{1} << 32 ? select(uint64_t{}) : select(uint128_t{});
}

void mask_indices(const uint32_t* mask, int64_t n, int64_t* indices, int multiprocessors,
                  const Scratch& scratch, cudaStream_t stream) {
  if (n == 0) return;
  compact(Bits{mask, n}, CompactScratch(scratch, n), SamePlace{}, n, indices, multiprocessors,
          stream);
}

}  // namespace adapruner::cuda
