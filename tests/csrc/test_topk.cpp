// csrc/math/topk.h compared with plain comparisons of floats, sorting and counting.
#include <algorithm>
#include <cfloat>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "../../csrc/math/topk.h"
#include "check.h"

namespace {

using namespace adapruner;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A number with random bits: every magnitude, subnormal numbers and infinities, but not NaN.
float any_number(std::mt19937& random) {
  for (;;) {
    const uint32_t bits = random();
    float x;
    std::memcpy(&x, &bits, sizeof x);
    if (x == x) return x;
  }
}

void keys_are_ordered_as_floats() {
  const float ascending[] = {-kInfinity,   -FLT_MAX, -1.5f, -1.0f, -FLT_MIN, -FLT_TRUE_MIN, 0.0f,
                             FLT_TRUE_MIN, FLT_MIN,  1.0f,  1.5f,  FLT_MAX,  kInfinity};
  for (float a : ascending) {
    for (float b : ascending) {
      CHECK_EQUAL(order_key(a) < order_key(b), a < b);
      CHECK_EQUAL(signed_key(order_key(a)) < signed_key(order_key(b)), a < b);
    }
  }
  CHECK_EQUAL(order_key(-0.0f), order_key(0.0f));
  CHECK_EQUAL(order_key(0.0f), kZeroKey);
  CHECK_EQUAL(order_key(-kInfinity), kLowestKey);
  CHECK_EQUAL(order_key(kInfinity), kHighestKey);
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const float a = any_number(random), b = any_number(random);
    CHECK_EQUAL(order_key(a) < order_key(b), a < b);
    CHECK_EQUAL(order_key(a) == order_key(b), a == b);
  }
}

void keys_give_their_values_back() {
  std::mt19937 random(2);
  for (int i = 0; i < 200000; ++i) {
    const float x = any_number(random);
    CHECK_EQUAL(key_value(order_key(x)), x);
  }
  for (uint32_t center : {kLowestKey + 1000, kZeroKey, order_key(1.0f), kHighestKey - 1000}) {
    for (uint32_t key = center - 1000; key <= center + 1000; ++key) {
      CHECK_EQUAL(order_key(key_value(key)), key);
    }
  }
  CHECK_EQUAL(key_value(order_key(1.0f) + 1), std::nextafter(1.0f, 2.0f));
  CHECK_EQUAL(key_value(kZeroKey - 1), -FLT_TRUE_MIN);
}

// NaN may have any key that no number has.
void nan_has_the_key_of_no_number() {
  for (uint32_t bits :
       {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffc00000u, 0xffffffffu}) {
    float nan;
    std::memcpy(&nan, &bits, sizeof nan);
    CHECK(order_key(nan) < kLowestKey || order_key(nan) > kHighestKey);
  }
}

void digits_cut_a_range_without_gaps() {
  const KeyRange ranges[] = {
      {kLowestKey, kHighestKey},      {0, 0xffffffffu}, {7, 7}, {7, 8}, {100, 355}, {100, 356},
      {kZeroKey - 3, kZeroKey + 5000}};
  for (const KeyRange& range : ranges) {
    for (int bits : {1, 4, 8, 11}) {
      const int shift = digit_shift(range, bits);
      const uint32_t last = digit_of(range.high, range.low, shift);
      CHECK(last >> bits == 0);
      CHECK(shift == 0 || last >> (bits - 1) == 1);  // not coarser than needed
      CHECK_EQUAL(digit_of(range.low, range.low, shift), 0u);
      uint32_t next = range.low;
      for (uint32_t digit = 0; digit <= last; ++digit) {
        const KeyRange part = digit_range(range, shift, digit);
        CHECK_EQUAL(part.low, next);
        CHECK_EQUAL(digit_of(part.low, range.low, shift), digit);
        CHECK_EQUAL(digit_of(part.high, range.low, shift), digit);
        next = part.high + 1;
      }
      CHECK_EQUAL(next, range.high + 1);
    }
  }
}

void narrowing_by_digits_finds_the_kth_largest() {
  std::mt19937 random(3);
  std::vector<uint32_t> keys(1000);
  for (uint32_t& key : keys) key = order_key(any_number(random));
  std::fill(keys.begin() + 400, keys.begin() + 700, keys[400]);
  std::vector<uint32_t> sorted = keys;
  std::sort(sorted.begin(), sorted.end(), std::greater<uint32_t>());
  for (int64_t k : {1, 2, 500, 999, 1000}) {
    KeyRange range{kLowestKey, kHighestKey};
    int64_t rank = k;
    while (range.low < range.high) {
      const int shift = digit_shift(range, 8);
      std::vector<int32_t> histogram(256, 0);
      for (uint32_t key : keys) {
        if (key >= range.low && key <= range.high) ++histogram[digit_of(key, range.low, shift)];
      }
      const DigitRank found = find_digit(histogram.data(), 256, rank);
      range = digit_range(range, shift, static_cast<uint32_t>(found.digit));
      rank = found.rank;
    }
    CHECK_EQUAL(range.low, sorted[k - 1]);
    const auto first = std::find(sorted.begin(), sorted.end(), sorted[k - 1]);
    CHECK_EQUAL(rank, k - (first - sorted.begin()));
  }
}

void sample_has_one_member_from_each_stratum() {
  for (int64_t n : {int64_t{1}, int64_t{5}, int64_t{1000}, int64_t{16385}, int64_t{1} << 40}) {
    for (int64_t strata : {int64_t{1}, int64_t{3}, int64_t{1000}}) {
      if (strata > n) continue;
      int64_t begin = 0;
      for (int64_t s = 0; s < strata; ++s) {
        const int64_t end = begin + n / strata + (s < n % strata);
        const int64_t index = sample_index(s, strata, n);
        CHECK(begin <= index && index < end);
        begin = end;
      }
      CHECK_EQUAL(begin, n);
    }
  }
  CHECK_EQUAL(sample_size(0), 0);
  CHECK_EQUAL(sample_size(1000), 0);
  CHECK(sample_size(100000) > 0 && sample_size(100000) < 10000);
  CHECK(sample_size(int64_t{1} << 50) <= int64_t{1} << 20);
}

// The ranks surround the rank of k, at a few standard deviations of a random sample.
void sample_ranks_surround_the_threshold() {
  const int64_t n = 10000000, size = 20000;
  for (int64_t k : {int64_t{1}, int64_t{1000}, n / 2, n * 7 / 10, n - 1}) {
    const SampleRanks ranks = bracket_ranks(k, n, size);
    const double center = static_cast<double>(k) / n * size;
    CHECK(ranks.high < center && center < ranks.low);
    CHECK(static_cast<double>(ranks.low - ranks.high) < 0.05 * size);
  }
  CHECK(bracket_ranks(1, n, size).high <= 0);
  CHECK(bracket_ranks(n - 1, n, size).low > size);

  std::mt19937 random(4);
  int outside = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    // Number of members of the sample above the threshold for the keep ratio 0.7.
    const int64_t above = std::binomial_distribution<int64_t>(1000, 0.7)(random);
    const SampleRanks ranks = bracket_ranks(n * 7 / 10, n, 1000);
    outside += above < ranks.high || above >= ranks.low;
  }
  CHECK(outside <= 3);
}

void value_bins_are_in_order_and_have_exact_edges() {
  const ValueBins some[] = {value_bins(-2.0f, 3.0f, 256),   value_bins(0.99f, 1.01f, 16),
                            value_bins(-1e30f, 1e30f, 512), value_bins(0.0f, 1e-19f, 512),
                            value_bins(1.0f, 1.0f, 256),    value_bins(-FLT_MAX, FLT_MAX, 256),
                            value_bins(0.0f, 1e-40f, 256)};
  const int count[] = {256, 16, 512, 512, 256, 256, 256};
  std::mt19937 random(5);
  for (size_t b = 0; b < std::size(some); ++b) {
    const ValueBins& bins = some[b];
    for (int i = 0; i < 20000; ++i) {
      const float x = any_number(random), y = any_number(random);
      CHECK(value_bin(bins, x) >= 0 && value_bin(bins, x) < count[b]);
      CHECK(x > y || value_bin(bins, x) <= value_bin(bins, y));
    }
    CHECK_EQUAL(value_bin(bins, -kInfinity), 0);
    CHECK_EQUAL(first_key_of_bin(bins, 0), kLowestKey);
    for (int bin = 1; bin < count[b]; ++bin) {
      const uint32_t edge = first_key_of_bin(bins, bin);
      CHECK(edge > kHighestKey || value_bin(bins, key_value(edge)) >= bin);
      CHECK(value_bin(bins, key_value(edge - 1)) < bin);
    }
  }
  CHECK_EQUAL(value_bin(some[0], 3.0f), 255);
  for (size_t b : {4, 5, 6}) CHECK_EQUAL(value_bin(some[b], kInfinity), 0);  // one bin for all
}

}  // namespace

int main() {
  keys_are_ordered_as_floats();
  keys_give_their_values_back();
  nan_has_the_key_of_no_number();
  digits_cut_a_range_without_gaps();
  narrowing_by_digits_finds_the_kth_largest();
  sample_has_one_member_from_each_stratum();
  sample_ranks_surround_the_threshold();
  value_bins_are_in_order_and_have_exact_edges();
  return check::failures() == 0 ? 0 : 1;
}
