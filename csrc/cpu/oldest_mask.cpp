// The oldest samples as a bit mask. A histogram of the ages gives the age at which the cut lies. Of
// the samples of that age, the ones with the smallest hashes are taken. Hashes well below the
// expected threshold are taken at once. Hashes around it are stored and ranked. No two samples have
// the same hash, so the result is exact.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "../checks.h"
#include "../math/permutation.h"
#include "partition.h"

namespace adapruner::cpu {
namespace {

// Calls f(i) for each set bit in [begin, begin + size), in ascending order. begin is a multiple of
// 8.
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
  OldestSelection(const uint8_t* candidates, const uint8_t* age, int64_t n, uint64_t key,
                  uint8_t* mask)
      : candidates_(candidates), age_(age), key_(key), mask_(mask), partition_(n) {}

  // Writes the mask of `count` candidates, or of all candidates if there are no more.
  void run(int64_t count) const {
    const std::array<int64_t, 256> ages = histogram();
    int cut = 255;
    while (cut >= 0 && ages[cut] <= count) count -= ages[cut--];
    if (cut < 0) count = 0;
    const double equal = cut < 0 ? 1.0 : static_cast<double>(ages[cut]);
    const double share = static_cast<double>(count) / equal;
    // Three standard deviations. The threshold is outside for a few keys in a thousand.
    double margin = 3 * std::sqrt(share * (1 - share) / equal);
    while (!choose(cut, count, share - margin, share + margin)) margin *= 8;
  }

 private:
  uint64_t hash(int64_t i) const { return sample_hash(static_cast<uint64_t>(i), key_); }

  void set(int64_t i) const { mask_[i / 8] = static_cast<uint8_t>(mask_[i / 8] | 1u << (i % 8)); }

  // The number of candidates of each age.
  std::array<int64_t, 256> histogram() const {
    // Several counters for each age, because a counter is slow to increment twice in a row.
    std::vector<std::array<std::array<int64_t, 256>, 4>> counts(partition_.tasks());
    partition_.each_task([&](int64_t task) {
      auto& mine = counts[task];
      int next = 0;
      const int64_t begin = partition_.begin(task);
      each_bit(candidates_, begin, partition_.end(task) - begin,
               [&](int64_t i) { ++mine[next++ % 4][age_[i]]; });
    });
    std::array<int64_t, 256> total{};
    for (const auto& mine : counts) {
      for (const auto& part : mine) {
        for (int age = 0; age < 256; ++age) total[age] += part[age];
      }
    }
    return total;
  }

  // Writes the candidates older than `cut`, and the `count` candidates of age `cut` with the
  // smallest hashes. Returns false if their threshold is not between the two shares of the hash
  // range.
  bool choose(int cut, int64_t count, double low_share, double high_share) const {
    const uint64_t low = bound(low_share), high = bound(high_share);
    struct Found {
      int64_t below = 0;
      std::vector<std::pair<uint64_t, int64_t>> between;  // hash, index
    };
    std::vector<Found> found(partition_.tasks());
    partition_.each_task([&](int64_t task) {
      Found& mine = found[task];
      const int64_t begin = partition_.begin(task), size = partition_.end(task) - begin;
      std::memset(mask_ + begin / 8, 0, (size + 7) / 8);
      each_bit(candidates_, begin, size, [&](int64_t i) {
        if (age_[i] < cut) return;
        if (age_[i] > cut) return set(i);
        const uint64_t hash = this->hash(i);
        if (hash > high) return;
        if (hash >= low) {
          mine.between.emplace_back(hash, i);
        } else {
          ++mine.below;
          set(i);
        }
      });
    });
    std::vector<std::pair<uint64_t, int64_t>> ranked;
    for (const Found& mine : found) {
      count -= mine.below;
      ranked.insert(ranked.end(), mine.between.begin(), mine.between.end());
    }
    if (count < 0 || count > static_cast<int64_t>(ranked.size())) return false;
    std::nth_element(ranked.begin(), ranked.begin() + count, ranked.end());
    for (int64_t j = 0; j < count; ++j) set(ranked[j].second);
    return true;
  }

  // The hash at a share of the hash range. The share is clamped to [0, 1].
  static uint64_t bound(double share) {
    if (share <= 0) return 0;
    return share >= 1 ? ~uint64_t{0} : static_cast<uint64_t>(std::ldexp(share, 64));
  }

  const uint8_t* candidates_;
  const uint8_t* age_;
  uint64_t key_;
  uint8_t* mask_;
  Partition partition_;
};

at::Tensor oldest_mask_cpu(const at::Tensor& candidates, const at::Tensor& age, int64_t count,
                           int64_t key) {
  check_oldest_mask(candidates, age, count, key);
  const at::Tensor bits = candidates.contiguous(), ages = age.contiguous();
  const at::Tensor mask = at::empty(bits.sizes(), bits.options());
  OldestSelection(bits.const_data_ptr<uint8_t>(), ages.const_data_ptr<uint8_t>(), ages.size(0),
                  static_cast<uint64_t>(key), mask.mutable_data_ptr<uint8_t>())
      .run(count);
  return mask;
}

}  // namespace

TORCH_LIBRARY_IMPL(adapruner, CPU, m) { m.impl("oldest_mask", oldest_mask_cpu); }

}  // namespace adapruner::cpu
