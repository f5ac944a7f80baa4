// Exact top-k without a sort, in little more than one read of the values. As on the CPU, a sample
// brackets the threshold. One pass writes the mask outside the bracket and stores the values inside
// it. These are called the band. The band has about 0.4–2 % of all values. A digit decides most of
// the band, and one block decides the rest. That takes four launches, or fewer if there are too few
// values for a sample or the band is short. The host then waits once, to report a NaN. It also
// learns whether anything is left to do. Few inputs need more:
//   ties at a bound   These may be most of the data. A scan over tiles ranks them.
//   equal digits      Many entries of the band have the same digit, because the values are nearly
//                     equal. More digits decide them.
//   wrong bracket     The values are in an order made to mislead the sample. Digits of all values
//                     find the threshold, and the pass runs again.
//
// Only integers are added up. Atomics append entries in any order, and keys and indices rank them.
// So the result does not depend on the order of blocks.
#pragma once

#include "selection.h"
#include "topk_kernels.cuh"

namespace adapruner::cuda {

struct TopkPlan {
  int64_t sample;              // size of the sample; 0: no sample
  Search<uint32_t> bounds[2];  // searches in the sample for the bracket, or the bracket itself
  int64_t capacity;            // most entries of the band
};

// k in [0, n], n > 0.
inline TopkPlan plan_topk(int64_t n, int64_t k) {
  const auto fixed = [](uint32_t key) { return begin_search(KeyRange{key, key}, 1, 1); };
  // None or all: a bracket that contains only NaN.
  if (k == 0) return {0, {fixed(kAboveAll), fixed(kHighestKey)}, 0};
  if (k == n) return {0, {fixed(kLowestKey), fixed(kHighestKey)}, 0};
  TopkPlan plan{sample_size(n), {fixed(kAboveAll), fixed(kBelowAll)}, n};
  if (plan.sample == 0) return plan;
  SampleRanks ranks = bracket_ranks(k, n, plan.sample);
  const KeyRange all{kBelowAll, kAboveAll};
  if (ranks.high >= 1) plan.bounds[0] = begin_search(all, ranks.high, plan.sample);
  if (ranks.low <= plan.sample) plan.bounds[1] = begin_search(all, ranks.low, plan.sample);
  // Half as many again as expected.
  const double share =
      static_cast<double>(std::min(ranks.low, plan.sample) - std::max<int64_t>(ranks.high, 0)) /
      static_cast<double>(plan.sample);
  const auto roomy = static_cast<int64_t>(1.5 * share * static_cast<double>(n)) + kTile;
  plan.capacity = std::min(n, roomy);
  return plan;
}

// Most keys that one block searches by itself. Reading them again takes it less time than another
// launch.
struct OneBlock {
  int64_t sample = int64_t{1} << 16;
  int64_t few = int64_t{1} << 14;  // entries of the band
};

template <typename Entry>
class Topk {
 public:
  Topk(const float* values, int64_t n, int64_t k, uint32_t* mask, int multiprocessors,
       const Scratch& scratch, cudaStream_t stream, OneBlock one_block = {})
      : values_(values),
        n_(n),
        k_(k),
        mask_(mask),
        multiprocessors_(multiprocessors),
        stream_(stream),
        one_block_(one_block),
        plan_(plan_topk(n, k)),
        tiles_(ceil_div<int64_t>(n, kTile)),
        sample_(scratch_array<uint32_t>(scratch, plan_.sample)),
        ties_(scratch_array<TileTies>(scratch, tiles_)),
        band_(scratch_array<Entry>(scratch, plan_.capacity)),
        few_(scratch_array<Entry>(scratch, std::min(plan_.capacity, one_block.few))),
        state_(scratch_array<TopkState<Entry>>(scratch, 1)),
        found_(scratch_array<TopkState<Entry>>(scratch, 1, Memory::kPinned)) {}

  int64_t run(double slope, int64_t* sums) {
    check(cudaMemsetAsync(state_, 0, sizeof *state_, stream_));
    const bool sampled = plan_.sample > 0;
    if (sampled) bracket_by_sample();
    scan(sampled, slope, reinterpret_cast<Count*>(sums));
    if (plan_.capacity > one_block_.few) search_band(0, 1);
    if (plan_.capacity > 0) keep_band();
    check(cudaMemcpyAsync(found_, state_, offsetof(TopkState<Entry>, digits),
                          cudaMemcpyDeviceToHost, stream_));
    check(cudaStreamSynchronize(stream_));
    if (found_->nan_from_end > 0) return n_ - found_->nan_from_end;
    const Place place = found_->found.place;
    if (place == Place::kOutside) {
      select_by_digits();
    } else if (place == Place::kAtHigh || place == Place::kAtLow) {
      keep_ties();
    } else if (found_->open > 0) {
      search_band(1, digit_rounds(32 + entries_of<Entry>(n_).index_bits));
      keep_band();
    }
    return -1;
  }

 private:
  void begin(const Search<uint32_t>& high, const Search<uint32_t>& low) {
    launch(begin_topk_kernel<Entry>, 1, 1, 0, stream_, state_, high, low);
  }

  void bracket_by_sample() {
    const bool small = plan_.sample <= one_block_.sample;
    launch_strided(search_sample_kernel<KeepBounds<Entry>>, plan_.sample, kSampleThreads,
                   multiprocessors_, kSampleThreads, stream_, values_, n_, plan_.sample, sample_,
                   small, plan_.bounds[0], plan_.bounds[1], &state_->arrived,
                   KeepBounds<Entry>{state_});
    if (small) return;
    search<2>(Keys<uint32_t>{sample_, plan_.sample}, plan_.sample, state_->bounds, 0,
              digit_rounds(32));
  }

  // Runs the rounds [begin, end) of searches among n keys.
  template <int kSearches, typename Key, typename Source>
  void search(const Source& source, int64_t n, Search<Key>* searches, int begin, int end) {
    for (int round = begin; round < end; ++round) {
      launch_digits(search_digits_kernel<kSearches, Key, Source>, n, 4, multiprocessors_, 0,
                    stream_, source, searches, static_cast<Count*>(state_->digits),
                    &state_->arrived);
    }
  }

  void scan(bool left, double slope, Count* sums) {
    const auto kernel =
        sums != nullptr ? scan_bracket_kernel<true, Entry> : scan_bracket_kernel<false, Entry>;
    const KeyRange given{plan_.bounds[1].range.low, plan_.bounds[0].range.low};
    launch_strided(kernel, tiles_, 1, multiprocessors_, kTileThreads, stream_, values_, n_, k_,
                   slope, mask_, ties_, band_, plan_.capacity, state_, left, given, sums);
  }

  void search_band(int begin, int end) {
    search<1>(Band<Entry>{band_, state_}, plan_.capacity, &state_->band, begin, end);
  }

  void keep_band() {
    launch_digits(keep_band_kernel<Entry>, plan_.capacity, 4, multiprocessors_, 0, stream_,
                  Band<Entry>{band_, state_}, n_, few_, one_block_.few, state_, mask_);
  }

  void keep_ties() {
    launch(find_last_tile_kernel<Entry>, 1, kScanThreads, 0, stream_, ties_, tiles_, state_);
    launch_strided(keep_ties_kernel<Entry>, tiles_, 1, multiprocessors_, kTileThreads, stream_,
                   values_, n_, ties_, state_, mask_);
  }

  // Both bounds become the key of the threshold. The pass decides all other values, and its ties
  // are ranked as usual.
  void select_by_digits() {
    const Search<uint32_t> all = begin_search(KeyRange{kLowestKey, kHighestKey}, k_, n_);
    begin(all, all);
    search<1>(Values{values_, n_}, n_, state_->bounds, 0, digit_rounds(32));
    launch(close_bracket_kernel<Entry>, 1, 1, 0, stream_, state_);
    scan(true, 0, nullptr);
    keep_ties();
  }

  const float* values_;
  int64_t n_;
  int64_t k_;
  uint32_t* mask_;
  int multiprocessors_;
  cudaStream_t stream_;
  OneBlock one_block_;
  TopkPlan plan_;
  int64_t tiles_;
  // On the device.
  uint32_t* sample_;
  TileTies* ties_;
  Entry* band_;
  Entry* few_;
  TopkState<Entry>* state_;
  TopkState<Entry>* found_;  // on the host
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

}  // namespace adapruner::cuda
