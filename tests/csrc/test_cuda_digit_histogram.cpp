// csrc/cuda/digit_histogram.cuh in the emulator. Histograms are compared with plain counts. A top-k
// of several parts that share histograms is compared with a stable sort of the whole.
#define ADAPRUNER_EMULATE
#include "../../csrc/cuda/digit_histogram.cuh"
#include "check.h"
#include "topk_cases.h"

namespace {

using namespace adapruner;
using namespace adapruner::cuda;

void histograms_are_counts() {
  std::vector<float> x = cases::values_of("infinities", 5003);
  x[17] = std::nanf("");
  for (const KeyRange range : {KeyRange{kLowestKey, kHighestKey}, KeyRange{kZeroKey, kZeroKey},
                               KeyRange{order_key(0.5f), order_key(0.9f)},
                               KeyRange{order_key(0.8f), order_key(0.8f) + 3000}}) {
    const int64_t given[3] = {range.low, range.high, 1};
    const int shift = digit_shift(range, kDigitBits);
    std::vector<int64_t> expected(kDigits + 1, 0), found(kDigits + 1, -1);
    for (const float v : x) {
      if (v != v) continue;
      const uint32_t key = order_key(v);
      if (key > range.high) ++expected[kDigits];
      if (key >= range.low && key <= range.high) ++expected[(key - range.low) >> shift];
    }
    count_key_digits(x.data(), x.size(), given, found.data(), 3, nullptr);
    CHECK(found == expected);
  }
  std::vector<int64_t> found(kDigits + 1, -1);
  const int64_t given[3] = {-5, int64_t{1} << 40, 1};  // not keys: clamped to the valid range
  count_key_digits(x.data(), 0, given, found.data(), 3, nullptr);
  CHECK(found == std::vector<int64_t>(kDigits + 1, 0));
}

void parts_agree_on_the_threshold(const std::string& kind, int64_t k) {
  const std::vector<float> x = cases::values_of(kind, 6000);
  const std::vector<int64_t> order = cases::stable_order(x);
  int64_t range[3] = {kLowestKey, kHighestKey, k}, narrower[3];
  for (int round = 0; round < digit_rounds(32); ++round) {
    std::vector<int64_t> all(kDigits + 1, 0), part(kDigits + 1);
    for (const int64_t begin : {0, 1000, 4000}) {  // aligned
      const int64_t end = begin == 0 ? 1000 : begin == 1000 ? 4000 : 6000;
      count_key_digits(x.data() + begin, end - begin, range, part.data(), 2, nullptr);
      for (int d = 0; d <= kDigits; ++d) all[d] += part[d];
    }
    narrow_key_range(range, all.data(), narrower, nullptr);
    std::copy(narrower, narrower + 3, range);
  }
  const float threshold = x[order[k - 1]];
  CHECK_EQUAL(range[0], range[1]);
  CHECK_EQUAL(range[0], int64_t{order_key(threshold)});
  const int64_t larger = std::count_if(x.begin(), x.end(), [&](float v) { return v > threshold; });
  CHECK_EQUAL(range[2], k - larger);
}

}  // namespace

int main() {
  emulation::each_order([] {
    histograms_are_counts();
    for (const char* kind : {"normal", "few values", "every magnitude"}) {
      for (const int64_t k : {1, 4321, 6000}) parts_agree_on_the_threshold(kind, k);
    }
  });
  return check::failures() != 0;
}
