// The samples that have waited the longest, as a bit mask. A histogram of the ages says which age
// is cut; a histogram of the leading bits of a hash, in which bin of them the cut lies; the few
// samples of that bin are ranked. No two samples share a hash, so that the outcome is exact.
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "../checks.h"
#include "../math/permutation.h"
#include "partition.h"

namespace adapruner::cpu {
namespace {

constexpr int kHashBits = 12;

// f(i) for the bits set in [begin, begin + size), ascending; begin is a multiple of 8.
template <typename F>
void each_bit(const uint8_t* mask, int64_t begin, int64_t size, const F& f) {
  for (int64_t i = begin; i < begin + size; i += 64) {
    const int64_t left = std::min<int64_t>(64, begin + size - i);
    uint64_t word = 0;
    std::memcpy(&word, mask + i / 8, (left + 7) / 8);
    if (left < 64) word &= (uint64_t{1} << left) - 1;
    for (; word != 0; word &= word - 1) f(i + __builtin_ctzll(word));
  }
}

class OldestSelection {
 public:
  OldestSelection(const uint8_t* candidates, const uint8_t* age, int64_t n, uint64_t key)
      : candidates_(candidates), age_(age), key_(key), partition_(n) {}

  // Sets the bits of `count` candidates, or of all where there are no more, in a mask of zeros.
  void run(int64_t count, uint8_t* mask) const {
    const auto ages = histogram<256>([&](int64_t i, auto add) { add(age_[i]); });
    const auto [cut_age, left] = cut(ages, 255, -1, count);
    const auto hashes = histogram<1 << kHashBits>([&, age = cut_age](int64_t i, auto add) {
      if (age_[i] == age) add(hash(i) >> (64 - kHashBits));
    });
    const auto [cut_hash, rest] = cut(hashes, 0, 1, left);
    write(mask, cut_age, cut_hash, rest);
  }

 private:
  // Different for every sample: all its steps can be undone.
  uint64_t hash(int64_t i) const {
    return mixed(static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15u + key_);
  }

  // f(i) for the candidates of a task.
  template <typename F>
  void each_candidate(int64_t task, const F& f) const {
    const int64_t begin = partition_.begin(task);
    each_bit(candidates_, begin, partition_.end(task) - begin, f);
  }

  // Counts of the bins that f(i, add) adds.
  template <int kBins, typename F>
  std::vector<int64_t> histogram(const F& f) const {
    std::vector<std::array<int64_t, kBins>> counts(partition_.tasks());
    partition_.each_task([&](int64_t task) {
      auto& mine = counts[task];
      mine.fill(0);
      each_candidate(task, [&](int64_t i) { f(i, [&](uint64_t bin) { ++mine[bin]; }); });
    });
    std::vector<int64_t> total(kBins, 0);
    for (const auto& mine : counts) {
      for (int bin = 0; bin < kBins; ++bin) total[bin] += mine[bin];
    }
    return total;
  }

  // The first bin, from `bin` on in steps of `step`, that holds more than is left of `count` there,
  // and what is left; one bin past the last where there is none.
  static std::pair<int, int64_t> cut(const std::vector<int64_t>& counts, int bin, int step,
                                     int64_t count) {
    const int bins = static_cast<int>(counts.size());
    for (; bin >= 0 && bin < bins && counts[bin] <= count; bin += step) count -= counts[bin];
    return {bin, count};
  }

  void write(uint8_t* mask, int cut_age, int cut_hash, int64_t rest) const {
    using Ranked = std::pair<uint64_t, int64_t>;  // hash, index
    std::vector<std::vector<Ranked>> at_cut(partition_.tasks());
    const auto set = [mask](int64_t i) {
      mask[i / 8] = static_cast<uint8_t>(mask[i / 8] | 1u << (i % 8));
    };
    partition_.each_task([&](int64_t task) {
      each_candidate(task, [&](int64_t i) {
        if (age_[i] < cut_age) return;
        if (age_[i] > cut_age) return set(i);
        const uint64_t hash = this->hash(i);
        const int bin = static_cast<int>(hash >> (64 - kHashBits));
        if (bin < cut_hash) set(i);
        if (bin == cut_hash) at_cut[task].emplace_back(hash, i);
      });
    });
    std::vector<Ranked> ranked;
    for (const auto& mine : at_cut) ranked.insert(ranked.end(), mine.begin(), mine.end());
    rest = std::min(rest, static_cast<int64_t>(ranked.size()));  // none is cut: all are kept
    std::nth_element(ranked.begin(), ranked.begin() + rest, ranked.end());
    for (int64_t j = 0; j < rest; ++j) set(ranked[j].second);
  }

  const uint8_t* candidates_;
  const uint8_t* age_;
  uint64_t key_;
  Partition partition_;
};

at::Tensor oldest_mask_cpu(const at::Tensor& candidates, const at::Tensor& age, int64_t count,
                           int64_t key) {
  check_oldest_mask(candidates, age, count);
  const at::Tensor bits = candidates.contiguous(), ages = age.contiguous();
  const at::Tensor mask = at::zeros(bits.sizes(), bits.options());
  OldestSelection(bits.const_data_ptr<uint8_t>(), ages.const_data_ptr<uint8_t>(), ages.size(0),
                  static_cast<uint64_t>(key))
      .run(count, mask.mutable_data_ptr<uint8_t>());
  return mask;
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) { m.impl("oldest_mask", oldest_mask_cpu); }

}  // namespace adapruner::cpu
