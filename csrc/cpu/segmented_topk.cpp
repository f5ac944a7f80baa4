// Exact top-k with a quota for each segment, without a sort, and without reading the values once
// for each segment. A histogram for each segment, over bins of values, tells which bin contains the
// segment's threshold. If these bins together contain few values, one more pass writes the mask for
// all values outside these bins, stores the values inside by segment, and decides them exactly.
// Otherwise histograms of smaller and smaller key ranges come first. A bin of a single value is
// never stored. Its ties are ranked in the last pass.
//
// Memory beyond the results:
//   histograms    at most 64 MB for all threads together, or 8 bytes per segment with more than
//                 8 million segments
//   per segment   about 40 bytes, and 8 more per thread
//   bands         at most 2 bytes per value (0.16 if they contain 1 % of the values) or 1 MB
#include "simd/segmented_topk.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "../checks.h"
#include "../integers.h"
#include "../math/topk.h"
#include "huge_pages.h"
#include "partition.h"
#include "simd/topk.h"

namespace adapruner::cpu {
namespace {

struct Segments {
  at::Tensor tensor;  // [N], contiguous, a dtype of load_rows
  int64_t count;

  // load_rows for the values from `begin` on.
  bool rows(int64_t begin, int64_t n, uint32_t* out) const {
    switch (tensor.scalar_type()) {
      case at::kByte:
        return load<uint8_t>(begin, n, out);
      case at::kChar:
        return load<int8_t>(begin, n, out);
      case at::kShort:
        return load<int16_t>(begin, n, out);
      case at::kInt:
        return load<int32_t>(begin, n, out);
      default:
        return load<int64_t>(begin, n, out);
    }
  }

 private:
  template <typename T>
  bool load(int64_t begin, int64_t n, uint32_t* out) const {
    return ADAPRUNER_DISPATCH(load_rows, tensor.const_data_ptr<T>() + begin, n, count, out);
  }
};

// Number of bits of a digit, and number of tasks. Each task has a histogram, and all histograms
// together have limited memory.
struct Layout {
  Layout(int64_t n, int64_t rows) {
    constexpr int64_t kCached = int64_t{1} << 18, kMost = int64_t{1} << 24;
    while (bits < 9 && rows << (bits + 1) <= std::min(kCached, 4 * n)) ++bits;
    while (bits > 1 && rows << bits > kMost) --bits;
    tasks = std::clamp<int64_t>(kMost / (rows << bits), 1, at::get_num_threads());
  }

  int bits = 4;
  int64_t tasks = 1;
};

// Bins between two bounds that contain most values, for the first histogram.
ValueBins sampled_bins(const float* values, int64_t n, int bins) {
  const int64_t size = std::min<int64_t>(n, 4096);
  std::vector<float> sample;
  sample.reserve(size);
  for (int64_t i = 0; i < size; ++i) {
    const float value = values[sample_index(i, size, n)];
    if (std::isfinite(value)) sample.push_back(value);
  }
  if (sample.empty()) return value_bins(0, 0, bins);
  const size_t margin = sample.size() / 200;
  const auto lowest = sample.begin() + margin, highest = sample.end() - 1 - margin;
  std::nth_element(sample.begin(), lowest, sample.end());
  std::nth_element(std::min(lowest + 1, highest), highest, sample.end());
  return value_bins(*lowest, *highest, bins);
}

class SegmentedSelection {
 public:
  SegmentedSelection(const float* values, int64_t n, const Segments& segments,
                     const int64_t* quotas, uint8_t* mask)
      : values_(values),
        n_(n),
        segments_(segments),
        quotas_(quotas),
        mask_(mask),
        rows_(segments.count + 1),
        layout_(n, rows_),
        partition_(n, layout_.tasks),
        counts_(partition_.tasks()),
        ranges_(rows_),
        shifts_(rows_),
        ranks_(rows_),
        inside_(rows_),
        earlier_(partition_.tasks() * rows_) {}

  // Writes the mask and, with a slope, sums [2].
  void run(std::optional<double> slope, int64_t* sums) {
    count_values(slope, sums);
    check_quotas();
    choose_first_digits();
    while (band_size() > band_limit()) {
      count_keys();
      choose_digits();
    }
    write_mask();
  }

 private:
  static constexpr uint32_t kNever = 0xffffffffu;

  int digits() const { return 1 << layout_.bits; }
  int64_t band_limit() const { return std::max<int64_t>(n_ / 8, int64_t{1} << 16); }
  // True if the threshold of a row is in a range of more than one key.
  bool undecided(int64_t row) const { return ranges_[row].low < ranges_[row].high; }

  int64_t band_size() const {
    int64_t size = 0;
    for (int64_t row = 1; row < rows_; ++row) size += undecided(row) ? inside_[row] : 0;
    return size;
  }

  // Requests the values and segments i … i + 63 from memory while the processor works on others.
  void prefetch(int64_t i) const {
    if (i + 64 > n_) return;
    constexpr int kLine = 64, kSecondLevel = 2;
    const auto ask = [i](const void* array, int64_t bytes_each) {
      const char* first = static_cast<const char*>(array) + i * bytes_each;
      for (int64_t b = 0; b < 64 * bytes_each; b += kLine) {
        __builtin_prefetch(first + b, 0, kSecondLevel);
      }
    };
    ask(values_, sizeof *values_);
    ask(segments_.tensor.const_data_ptr(), segments_.tensor.element_size());
  }

  // Calls f(begin, size, rows, good) for each block of a task. good: all segments are valid.
  template <typename F>
  void each_block(int64_t task, const F& f) const {
    uint32_t rows[kBlock];
    partition_.each_block(task, [&](int64_t begin, int64_t size) {
      const bool good = segments_.rows(begin, size, rows);
      f(begin, size, rows, good);
    });
  }

  void count_values(std::optional<double> slope, int64_t* sums) {
    struct alignas(64) Found {
      int64_t sums[2] = {0, 0};
      int64_t first_nan = -1;
      int64_t first_outside = -1;
    };
    bins_ = sampled_bins(values_, n_, digits());
    std::vector<Found> found(partition_.tasks());
    partition_.each_task([&](int64_t task) {
      Found& mine = found[task];
      std::vector<uint32_t>& counts = counts_[task];
      counts.assign(rows_ << layout_.bits, 0);
      each_block(task, [&](int64_t begin, int64_t size, uint32_t* rows, bool good) {
        if (!good && mine.first_outside < 0) mine.first_outside = first_outside(begin, size);
        const float* x = values_ + begin;
        const bool nan = ADAPRUNER_DISPATCH(value_slots, x, rows, size, bins_, layout_.bits, rows);
        if (nan && mine.first_nan < 0) mine.first_nan = std::find_if(x, x + size, is_nan) - values_;
        for (int64_t j = 0; j < size; j += 64) {
          prefetch(begin + kBlock + j);
          const int64_t end = std::min(size, j + 64);
          for (int64_t i = j; i < end; ++i) ++counts[rows[i]];
        }
        if (slope) ADAPRUNER_DISPATCH(sum_gates, x, size, *slope, mine.sums);
      });
    });
    for (const Found& mine : found) check_no_nan(mine.first_nan);
    for (const Found& mine : found) {
      if (mine.first_outside < 0) continue;
      refuse_segment(mine.first_outside, segment_at(mine.first_outside), segments_.count);
    }
    for (int i = 0; slope.has_value() && i < 2; ++i) {
      sums[i] = 0;
      for (const Found& mine : found) sums[i] += mine.sums[i];
    }
  }

  static bool is_nan(float x) { return x != x; }
  int64_t segment_at(int64_t i) const { return segments_.tensor[i].item<int64_t>(); }

  int64_t first_outside(int64_t begin, int64_t size) const {
    uint32_t row;
    for (int64_t i = begin; i < begin + size; ++i) {
      if (!segments_.rows(i, 1, &row)) return i;
    }
    return -1;
  }

  // Sums the histograms of a row over all tasks.
  void merge(int64_t row, std::vector<int64_t>& histogram) const {
    histogram.assign(digits(), 0);
    for (const auto& counts : counts_) {
      const uint32_t* mine = counts.data() + (row << layout_.bits);
      for (int digit = 0; digit < digits(); ++digit) histogram[digit] += mine[digit];
    }
  }

  // Calls f(row, histogram of the row), in parallel.
  template <typename F>
  void each_row(const F& f) const {
    at::parallel_for(1, rows_, 256, [&](int64_t first, int64_t last) {
      std::vector<int64_t> histogram;
      for (int64_t row = first; row < last; ++row) {
        merge(row, histogram);
        f(row, histogram);
      }
    });
  }

  void check_quotas() {
    each_row([&](int64_t row, const std::vector<int64_t>& histogram) {
      inside_[row] = 0;
      for (const int64_t count : histogram) inside_[row] += count;
    });
    for (int64_t row = 1; row < rows_; ++row) {
      const int64_t quota = quotas_[row - 1];
      if (quota < 0 || quota > inside_[row]) refuse_quota(row - 1, quota, inside_[row]);
    }
  }

  void choose_first_digits() {
    std::vector<uint32_t> edges(digits() + 1);
    for (int bin = 0; bin < digits(); ++bin) edges[bin] = first_key_of_bin(bins_, bin);
    edges[digits()] = kHighestKey + 1;
    ranges_[0] = {kNever, kNever};
    each_row([&](int64_t row, const std::vector<int64_t>& histogram) {
      ranks_[row] = quotas_[row - 1];
      if (ranks_[row] == 0) {
        ranges_[row] = {kNever, kNever};
      } else if (ranks_[row] == inside_[row]) {
        keep_from(row, kLowestKey);
      } else {
        const DigitRank found = find_digit(histogram.data(), digits(), ranks_[row]);
        narrow(row, histogram, found, {edges[found.digit], edges[found.digit + 1] - 1});
      }
    });
  }

  void choose_digits() {
    each_row([&](int64_t row, const std::vector<int64_t>& histogram) {
      if (!undecided(row)) return;
      const DigitRank found = find_digit(histogram.data(), digits(), ranks_[row]);
      const uint32_t digit = static_cast<uint32_t>(found.digit);
      narrow(row, histogram, found, digit_range(ranges_[row], shifts_[row], digit));
    });
  }

  // Keeps all values of the row with a key of at least `key` ≥ 1. No value is left to decide.
  void keep_from(int64_t row, uint32_t key) { ranges_[row] = {key, key - 1}; }

  void narrow(int64_t row, const std::vector<int64_t>& histogram, const DigitRank& found,
              const KeyRange& range) {
    ranges_[row] = range;
    ranks_[row] = found.rank;
    inside_[row] = histogram[found.digit];
    if (ranks_[row] == inside_[row]) return keep_from(row, range.low);
    shifts_[row] = static_cast<uint8_t>(digit_shift(range, layout_.bits));
    int64_t earlier = 0;
    for (int64_t task = 0; task < partition_.tasks(); ++task) {
      earlier_[task * rows_ + row] = earlier;
      earlier += counts_[task][(row << layout_.bits) + found.digit];
    }
  }

  void count_keys() {
    partition_.each_task([&](int64_t task) {
      std::vector<uint32_t>& counts = counts_[task];
      std::fill(counts.begin(), counts.end(), 0);
      each_block(task, [&](int64_t begin, int64_t size, const uint32_t* rows, bool) {
        for (int64_t j = 0; j < size; ++j) {
          const KeyRange range = ranges_[rows[j]];
          const uint32_t key = order_key(values_[begin + j]);
          if (key < range.low || key > range.high) continue;
          const uint32_t digit = digit_of(key, range.low, shifts_[rows[j]]);
          ++counts[(static_cast<size_t>(rows[j]) << layout_.bits) + digit];
        }
      });
    });
  }

  void write_mask() {
    std::vector<int64_t> starts(rows_ + 1, 0);
    for (int64_t row = 0; row < rows_; ++row) {
      starts[row + 1] = starts[row] + (undecided(row) ? inside_[row] : 0);
    }
    // Candidates by segment, in the order of their indices. `order` combines the key and the rank
    // of a candidate, so that it also decides among equal keys.
    const std::unique_ptr<uint64_t[]> order(new uint64_t[starts[rows_]]);
    const std::unique_ptr<int64_t[]> indices(new int64_t[starts[rows_]]);
    partition_.each_task([&](int64_t task) {
      int64_t* earlier = earlier_.data() + task * rows_;
      uint64_t candidates[kBlock / 64];
      each_block(task, [&](int64_t begin, int64_t size, const uint32_t* rows, bool) {
        ADAPRUNER_DISPATCH(split_rows, values_ + begin, rows, size, ranges_.data(),
                           mask_ + begin / 8, candidates);
        for (int64_t j = 0; j < size; j += 64) {
          prefetch(begin + kBlock + j);
          for (uint64_t rest = candidates[j / 64]; rest != 0; rest &= rest - 1) {
            const int64_t at = j + __builtin_ctzll(rest), i = begin + at;
            const int64_t row = rows[at], rank = earlier[row]++;
            if (undecided(row)) {
              const uint64_t key = order_key(values_[i]);
              order[starts[row] + rank] = key << 32 | (kNever - static_cast<uint32_t>(rank));
              indices[starts[row] + rank] = i;
            } else if (rank < ranks_[row]) {
              mask_[i / 8] = static_cast<uint8_t>(mask_[i / 8] | 1u << (i % 8));
            }
          }
        }
      });
    });
    at::parallel_for(1, rows_, 64, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        if (undecided(row)) keep_largest(order.get(), indices.get(), starts[row], row);
      }
    });
  }

  void keep_largest(uint64_t* order, const int64_t* indices, int64_t start, int64_t row) {
    uint64_t* const begin = order + start;
    uint64_t* const kept_end = begin + ranks_[row];
    std::nth_element(begin, kept_end - 1, begin + inside_[row], std::greater<uint64_t>());
    for (const uint64_t* entry = begin; entry < kept_end; ++entry) {
      const int64_t i = indices[start + (kNever - static_cast<uint32_t>(*entry))];
      // Two segments may share a byte of the mask.
      std::atomic_ref<uint8_t>(mask_[i / 8])
          .fetch_or(static_cast<uint8_t>(1u << (i % 8)), std::memory_order_relaxed);
    }
  }

  const float* values_;
  int64_t n_;
  const Segments& segments_;
  const int64_t* quotas_;
  uint8_t* mask_;
  int64_t rows_;
  Layout layout_;
  Partition partition_;
  ValueBins bins_{};
  std::vector<std::vector<uint32_t>> counts_;  // [tasks][rows << bits]
  // For each row: the range of keys that contains the threshold (larger keys are kept), the shift
  // of its digits, the rank of the threshold among the values in the range, and their number.
  std::vector<KeyRange> ranges_;
  std::vector<uint8_t> shifts_;
  std::vector<int64_t> ranks_;
  std::vector<int64_t> inside_;
  // [tasks, rows]: the number of these values in the runs of earlier tasks.
  std::vector<int64_t> earlier_;
};

std::tuple<at::Tensor, at::Tensor> segmented_topk_cpu(const at::Tensor& gate_logits,
                                                      const at::Tensor& segments,
                                                      const at::Tensor& quotas,
                                                      std::optional<double> slope) {
  check_segmented_topk(gate_logits, segments, quotas, slope);
  const at::Tensor values = gate_logits.contiguous();
  const at::Tensor limits = as_int64(quotas);
  const Segments groups{native_integers(segments), limits.size(0)};
  const int64_t n = values.numel();
  at::Tensor mask = at::empty({(n + 7) / 8}, values.options().dtype(at::kByte));
  advise_huge_pages(mask);
  at::Tensor sums = at::empty({slope ? 2 : 0}, values.options().dtype(at::kLong));
  SegmentedSelection(values.const_data_ptr<float>(), n, groups, limits.const_data_ptr<int64_t>(),
                     mask.mutable_data_ptr<uint8_t>())
      .run(slope, sums.mutable_data_ptr<int64_t>());
  return {mask, sums};
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) { m.impl("segmented_topk", segmented_topk_cpu); }

}  // namespace adapruner::cpu
