// Exact top-k without a sort. A sample of the gate logits brackets the threshold. One pass writes
// the mask for all values outside the bracket and stores the values inside it. The stored values
// are called the band. The band has about 0.4–2 % of all values. Histograms of digits decide it
// exactly. If the threshold is outside the bracket, histograms of digits over all values give a
// bracket that contains it, and the pass runs again. Values equal to a bound of the bracket, which
// may be most of the data, are not stored. One more pass ranks them.
#include "../math/topk.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "../checks.h"
#include "huge_pages.h"
#include "partition.h"
#include "simd/topk.h"

namespace adapruner::cpu {
namespace {

constexpr int kSampleBits = 12;  // sign, exponent and 3 more bits
using Histogram = std::vector<int64_t>;

// Entries of a band in the order of their indices. The memory is not initialised.
class Band {
 public:
  BandEntry* begin() { return entries_.get(); }
  BandEntry* end() { return entries_.get() + size_; }
  int64_t size() const { return size_; }
  void resize(int64_t size) { size_ = size; }

  // Makes room for `more` entries at the end.
  BandEntry* reserve(int64_t more) {
    if (size_ + more > capacity_) {
      capacity_ = std::max(2 * capacity_, size_ + more);
      std::unique_ptr<BandEntry[]> larger(new BandEntry[capacity_]);
      std::copy(begin(), end(), larger.get());
      entries_ = std::move(larger);
    }
    return end();
  }

 private:
  std::unique_ptr<BandEntry[]> entries_;
  int64_t size_ = 0;
  int64_t capacity_ = 0;
};

// Results of one task for its run of the values. Each task has its own cache lines.
struct alignas(64) Scan {
  BracketCounts counts;
  TieCounts ties;
  int64_t sums[2] = {0, 0};
  int64_t first_nan = -1;
  Band band;
};

class Selection {
 public:
  Selection(const float* values, int64_t n, int64_t k, uint8_t* mask)
      : values_(values), n_(n), k_(k), mask_(mask), partition_(n), scans_(partition_.tasks()) {}

  // Writes the mask and, with a slope, sums [2].
  void run(std::optional<double> slope, int64_t* sums) {
    Bracket bracket = first_bracket();
    scan<true>(bracket, slope);
    for (const Scan& found : scans_) check_no_nan(found.first_nan);
    for (int i = 0; slope.has_value() && i < 2; ++i) {
      sums[i] = 0;
      for (const Scan& found : scans_) sums[i] += found.sums[i];
    }
    if (resolve(bracket)) return;
    bracket = sure_bracket();
    scan<false>(bracket, std::nullopt);
    TORCH_INTERNAL_ASSERT(resolve(bracket), "the threshold left its bracket");
  }

 private:
  // The bracket from the sample. If there are too few values for a sample, it is open on both
  // sides.
  Bracket first_bracket() const {
    constexpr uint32_t kBelowAll = kLowestKey - 1, kAboveAll = kHighestKey + 1;
    if (k_ == 0) return {kAboveAll, kAboveAll};
    if (k_ == n_) return {kBelowAll, kBelowAll};
    const int64_t size = sample_size(n_);
    if (size == 0) return {kBelowAll, kAboveAll};
    // The keys of the sample, and a histogram of their leading bits for each task.
    constexpr int kShift = 32 - kSampleBits;
    const Partition strata(size);
    std::vector<uint32_t> sample(size);
    const Histogram histogram = count_digits(strata, kSampleBits, [&](int64_t task, auto& counts) {
      strata.each_block(task, [&](int64_t begin, int64_t length) {
        // Places first, so that memory can answer many requests at a time.
        int64_t places[kBlock];
        for (int64_t i = 0; i < length; ++i) {
          places[i] = sample_index(begin + i, size, n_);
          __builtin_prefetch(values_ + places[i]);
        }
        uint32_t* const keys = sample.data() + begin;
        for (int64_t i = 0; i < length; ++i) keys[i] = order_key(values_[places[i]]);
        for (int64_t i = 0; i < length; ++i) ++counts[keys[i] >> kShift];
      });
    });
    const SampleRanks ranks = bracket_ranks(k_, n_, size);
    std::vector<uint32_t> same(size);
    const auto largest = [&](int64_t rank) {
      const DigitRank found = find_digit(histogram.data(), 1 << kSampleBits, rank);
      auto end = same.begin();
      for (const uint32_t key : sample) {
        *end = key;
        end += key >> kShift == static_cast<uint32_t>(found.digit);
      }
      const auto nth = same.begin() + found.rank - 1;
      std::nth_element(same.begin(), nth, end, std::greater<uint32_t>());
      return std::min(std::max(*nth, kBelowAll), kAboveAll);  // keys of NaN are outside
    };
    Bracket bracket{kBelowAll, kAboveAll};
    if (ranks.high >= 1) bracket.high = largest(ranks.high);
    if (ranks.low <= size) bracket.low = largest(ranks.low);
    return bracket;
  }

  // A bracket that contains the threshold and leaves a band within its limit.
  Bracket sure_bracket() const {
    KeyRange range{kLowestKey, kHighestKey};
    int64_t rank = k_, inside = n_;
    while (inside > band_limit() && range.low < range.high) {
      const int shift = digit_shift(range, kDigitBits);
      const auto count = [&](int64_t task, Histogram& counts) {
        const uint32_t span = range.high - range.low;
        for (int64_t i = partition_.begin(task); i < partition_.end(task); ++i) {
          const uint32_t above_low = order_key(values_[i]) - range.low;
          if (above_low <= span) ++counts[above_low >> shift];
        }
      };
      const Histogram histogram = count_digits(partition_, kDigitBits, count);
      const DigitRank found = find_digit(histogram.data(), 1 << kDigitBits, rank);
      range = digit_range(range, shift, found.digit);
      rank = found.rank;
      inside = histogram[found.digit];
    }
    return {range.low, range.high};
  }

  // Limit of the number of entries in all bands. An entry takes 8 bytes, so they take at most a
  // byte per value.
  int64_t band_limit() const { return std::max<int64_t>(n_ / 8, int64_t{1} << 16); }

  template <bool kFirst>
  void scan(const Bracket& bracket, std::optional<double> slope) {
    std::atomic<int64_t> stored{0};
    partition_.each_task([&](int64_t task) {
      Scan& found = scans_[task];
      found.counts = {};
      found.band.resize(0);
      const int64_t run = partition_.begin(task);
      partition_.each_block(task, [&](int64_t begin, int64_t size) {
        bool nan = false;
        const int64_t appended = ADAPRUNER_DISPATCH(
            scan_bracket, values_ + begin, size, bracket, static_cast<uint32_t>(begin - run),
            mask_ + begin / 8, found.band.reserve(size + 2), found.counts, nan);
        // A band over its limit is useless. So entries are no longer stored, but counting goes on.
        if (stored.fetch_add(appended, std::memory_order_relaxed) <= band_limit()) {
          found.band.resize(found.band.size() + appended);
        }
        if (kFirst && nan && found.first_nan < 0) found.first_nan = first_nan(begin);
        if (slope) ADAPRUNER_DISPATCH(sum_gates, values_ + begin, size, *slope, found.sums);
      });
    });
  }

  int64_t first_nan(int64_t i) const {
    while (values_[i] == values_[i]) ++i;
    return i;
  }

  // Finishes the mask after a scan. Returns false if the threshold is not in the bracket, or if the
  // band was over its limit.
  bool resolve(const Bracket& bracket) {
    BracketCounts total;
    int64_t stored = 0;
    for (const Scan& found : scans_) {
      total.from_high += found.counts.from_high;
      total.above_low += found.counts.above_low;
      stored += found.band.size();
    }
    if (total.from_high == k_) return true;
    if (total.from_high > k_) return resolve_ties(bracket.high);
    const int64_t inside = std::max<int64_t>(total.above_low - total.from_high, 0);
    if (stored < inside) return false;
    if (total.above_low >= k_) {
      resolve_band({bracket.low + 1, bracket.high - 1}, k_ - total.from_high, inside);
      return true;
    }
    partition_.each_task([&](int64_t task) {
      uint8_t* const mask = mask_of(task);
      for (const BandEntry& entry : scans_[task].band) keep(mask, entry);
    });
    return resolve_ties(bracket.low);
  }

  // Keeps the first values with the given key, so that k are kept in all. All larger values are
  // kept already, and no smaller one. Returns false if this key is not the threshold.
  bool resolve_ties(uint32_t key) {
    if (key < kLowestKey || key > kHighestKey) return false;
    partition_.each_task([&](int64_t task) {
      TieCounts& ties = scans_[task].ties = {};
      partition_.each_block(task, [&](int64_t begin, int64_t size) {
        ADAPRUNER_DISPATCH(count_ties, values_ + begin, size, key, ties);
      });
    });
    TieCounts total;
    for (const Scan& found : scans_) {
      total.above += found.ties.above;
      total.equal += found.ties.equal;
    }
    int64_t rest = k_ - total.above;
    if (rest < 0 || rest > total.equal) return false;
    std::vector<int64_t> share(scans_.size());
    for (size_t task = 0; task < scans_.size(); ++task) {
      share[task] = std::min(rest, scans_[task].ties.equal);
      rest -= share[task];
    }
    partition_.each_task([&](int64_t task) {
      int64_t left = share[task];
      partition_.each_block(task, [&](int64_t begin, int64_t size) {
        left -= ADAPRUNER_DISPATCH(rank_ties, values_ + begin, size, key, left, mask_ + begin / 8);
      });
    });
    return true;
  }

  // Keeps the `rank` largest of the `size` entries of the band. All their keys are in `range`.
  void resolve_band(KeyRange range, int64_t rank, int64_t size) {
    for (;;) {
      const bool worthwhile = size >= 1 << 16;
      const int shift = digit_shift(range, kDigitBits);
      const auto count = [&](int64_t task, Histogram& counts) {
        for (const BandEntry& entry : scans_[task].band) {
          ++counts[digit_of(entry.key, range.low, shift)];
        }
      };
      const Histogram histogram = count_digits(partition_, kDigitBits, count, worthwhile);
      const DigitRank found = find_digit(histogram.data(), 1 << kDigitBits, rank);
      const uint32_t digit = static_cast<uint32_t>(found.digit);
      rank = found.rank;
      size = histogram[digit];
      const uint32_t lowest_kept = rank == size ? digit : digit + 1;
      const auto decide = [&](int64_t task) {
        Band& band = scans_[task].band;
        BandEntry* undecided = band.begin();
        uint8_t* const mask = mask_of(task);
        for (const BandEntry entry : band) {  // no branch: about half are kept
          const uint32_t its = digit_of(entry.key, range.low, shift);
          keep(mask, entry, its >= lowest_kept);
          *undecided = entry;
          undecided += its == digit;
        }
        band.resize(undecided - band.begin());
      };
      partition_.each_task(decide, worthwhile);
      if (lowest_kept == digit) return;
      range = digit_range(range, shift, digit);
      if (shift == 0) break;
    }
    for (int64_t task = 0; task < partition_.tasks(); ++task) {  // equal keys: keep the first
      for (const BandEntry& entry : scans_[task].band) {
        if (rank-- <= 0) return;
        keep(mask_of(task), entry);
      }
    }
  }

  uint8_t* mask_of(int64_t task) { return mask_ + partition_.begin(task) / 8; }

  static void keep(uint8_t* mask, const BandEntry& entry, bool kept = true) {
    uint8_t& byte = mask[entry.offset / 8];
    byte = static_cast<uint8_t>(byte | unsigned{kept} << (entry.offset % 8));
  }

  // Sums the histograms that count(task, histogram) makes, of digits of `bits` bits.
  template <typename F>
  static Histogram count_digits(const Partition& partition, int bits, const F& count,
                                bool worthwhile = true) {
    std::vector<Histogram> counts(partition.tasks());
    const auto count_one = [&](int64_t task) {
      counts[task].assign(int64_t{1} << bits, 0);
      count(task, counts[task]);
    };
    partition.each_task(count_one, worthwhile);
    for (size_t task = 1; task < counts.size(); ++task) {
      for (size_t digit = 0; digit < counts[0].size(); ++digit) {
        counts[0][digit] += counts[task][digit];
      }
    }
    return std::move(counts[0]);
  }

  const float* values_;
  int64_t n_;
  int64_t k_;
  uint8_t* mask_;
  Partition partition_;
  std::vector<Scan> scans_;
};

std::tuple<at::Tensor, at::Tensor> topk_mask_cpu(const at::Tensor& gate_logits, int64_t k,
                                                 std::optional<double> slope) {
  check_topk(gate_logits, k, slope);
  const at::Tensor values = gate_logits.contiguous();
  const int64_t n = values.numel();
  at::Tensor mask = at::empty({(n + 7) / 8}, values.options().dtype(at::kByte));
  advise_huge_pages(mask);
  at::Tensor sums = at::empty({slope ? 2 : 0}, values.options().dtype(at::kLong));
  Selection(values.const_data_ptr<float>(), n, k, mask.mutable_data_ptr<uint8_t>())
      .run(slope, sums.mutable_data_ptr<int64_t>());
  return {mask, sums};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) { m.impl("topk_mask", topk_mask_cpu); }

}  // namespace adapruner::cpu
