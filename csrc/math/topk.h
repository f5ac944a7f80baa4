// The exact top-k: integer keys with the order of the values, the digits of keys, and the small
// decisions that loops and kernels share. The result is exact for every choice of brackets, samples
// and bins. The choice only decides how much work is left for the exact part.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "platform.h"

namespace adapruner {

constexpr uint32_t kZeroKey = 0x80000000u;
constexpr uint32_t kLowestKey = 0x00800000u;   // order_key(−inf)
constexpr uint32_t kHighestKey = 0xff800000u;  // order_key(+inf)

// Key of a float32 that is not NaN. x < y exactly if order_key(x) < order_key(y). −0 and +0 share
// kZeroKey. The keys of all such values are all integers from kLowestKey to kHighestKey.
ADAPRUNER_HD inline uint32_t order_key(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t negative = 0u - (bits >> 31);  // all ones if the sign bit is set
  return (((bits & 0x7fffffffu) ^ negative) - negative) + kZeroKey;
}

// The bits of the float with this key. kZeroKey gives +0. Keys that no number has give NaN.
ADAPRUNER_HD inline uint32_t key_bits(uint32_t key) {
  return key < kZeroKey ? 0x80000000u | (kZeroKey - key) : key - kZeroKey;
}

// The value of a key in [kLowestKey, kHighestKey].
ADAPRUNER_HD inline float key_value(uint32_t key) {
  const uint32_t bits = key_bits(key);
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The same order as a signed integer, for instruction sets that compare only signed integers.
ADAPRUNER_HD inline int32_t signed_key(uint32_t key) {
  return static_cast<int32_t>(key ^ 0x80000000u);
}

// --- Digits of keys ------------------------------------------------------------------------------

// The keys from low to high, both included. In this file a Key is any unsigned integer type.
template <typename Key>
struct Range {
  Key low;
  Key high;
};
using KeyRange = Range<uint32_t>;

constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;

// Number of low bits that a digit of `bits` bits leaves undecided: the digits (key − range.low) >>
// shift of all keys in the range are below 2^bits. If it is 0, a digit is one key.
template <typename Key>
ADAPRUNER_HD inline int digit_shift(const Range<Key>& range, int bits) {
  int shift = 0;
  while (((range.high - range.low) >> shift) >> bits != 0) ++shift;
  return shift;
}

template <typename Key>
ADAPRUNER_HD inline uint32_t digit_of(Key key, Key low, int shift) {
  return static_cast<uint32_t>((key - low) >> shift);
}

// The keys of a range that have the given digit.
template <typename Key>
ADAPRUNER_HD inline Range<Key> digit_range(const Range<Key>& range, int shift, uint32_t digit) {
  const Key low = range.low + (Key{digit} << shift);
  const Key last = (Key{1} << shift) - 1;
  return {low, range.high - low < last ? range.high : low + last};
}

// Position of the k-th largest value: its digit, and its rank (from 1, largest first) among the
// values with this digit. Needs 1 ≤ k ≤ the sum of the histogram.
struct DigitRank {
  int digit;
  int64_t rank;
};

template <typename Count>
ADAPRUNER_HD inline DigitRank find_digit(const Count* histogram, int digits, int64_t k) {
  int digit = digits - 1;
  while (digit > 0 && k > static_cast<int64_t>(histogram[digit])) {
    k -= static_cast<int64_t>(histogram[digit--]);
  }
  return {digit, k};
}

// A search for the rank-th largest (from 1) of the `inside` keys in a range. It goes digit by
// digit. `shift` belongs to the next digit.
template <typename Key>
struct Search {
  Range<Key> range;
  int64_t rank;
  int64_t inside;
  int shift;
};

template <typename Key>
ADAPRUNER_HD inline Search<Key> begin_search(const Range<Key>& range, int64_t rank, int64_t inside,
                                             int bits = kDigitBits) {
  return {range, rank, inside, digit_shift(range, bits)};
}

// True if the search is over: the number of keys from range.low on is the rank, or the range is one
// key (which several values may have).
template <typename Key>
ADAPRUNER_HD inline bool decided(const Search<Key>& search) {
  return search.rank == search.inside || search.range.low == search.range.high;
}

// The search in the range of the digit that was found. `inside` is the number of keys with this
// digit.
template <typename Key>
ADAPRUNER_HD inline Search<Key> narrowed(const Search<Key>& search, const DigitRank& found,
                                         int64_t inside, int bits = kDigitBits) {
  const uint32_t digit = static_cast<uint32_t>(found.digit);
  return begin_search(digit_range(search.range, search.shift, digit), found.rank, inside, bits);
}

// --- Values and their indices in one integer -----------------------------------------------------

__extension__ typedef unsigned __int128 uint128_t;

// Entries combine the key and the index of a value. A larger entry has a larger value, or the same
// value and a lower index. No two entries are equal. An Entry is a uint64_t for n up to 2³², and a
// uint128_t beyond.
template <typename Entry>
struct Entries {
  int64_t n;
  int index_bits;  // 2^index_bits ≥ n

  ADAPRUNER_HD Entry of(uint32_t key, int64_t i) const {
    return Entry{key} << index_bits | static_cast<Entry>(n - 1 - i);
  }
  ADAPRUNER_HD int64_t index(Entry entry) const {
    const Entry later = entry & ((Entry{1} << index_bits) - 1);
    return n - 1 - static_cast<int64_t>(later);
  }
  // All entries with a key in the range.
  ADAPRUNER_HD Range<Entry> range(const KeyRange& keys) const {
    return {Entry{keys.low} << index_bits,
            (Entry{keys.high} << index_bits) + ((Entry{1} << index_bits) - 1)};
  }
};

template <typename Entry>
ADAPRUNER_HD inline Entries<Entry> entries_of(int64_t n) {
  int bits = 0;
  while ((n - 1) >> bits > 0) ++bits;
  return {n, bits};
}

// The lowest `count` set bits, or all of them if there are no more.
template <typename Word>
ADAPRUNER_HD inline Word first_bits(Word bits, int64_t count) {
  Word rest = bits;
  for (; count > 0 && rest != 0; --count) rest &= rest - 1;
  return bits ^ rest;
}

// --- A sample of the data brackets the threshold -------------------------------------------------

// Size of the sample of n values, or 0 if n is too small for a sample. Drawing the sample takes
// time in proportion to its size. The band has about n/√size values, and deciding it takes time
// too. The sum of both is least near n^⅔.
ADAPRUNER_HD inline int64_t sample_size(int64_t n) {
  constexpr int64_t kTooFew = int64_t{1} << 14, kMost = int64_t{1} << 20;
  if (n <= kTooFew) return 0;
  const double root = std::cbrt(static_cast<double>(n));
  const int64_t size = static_cast<int64_t>(0.8 * root * root);
  return size < kMost ? size : kMost;
}

// Index of the sample's member in one of `strata` runs of equal length that cover [0, n). A hash
// fixes its place in the run, so that periodic data do not mislead the sample.
ADAPRUNER_HD inline int64_t sample_index(int64_t stratum, int64_t strata, int64_t n) {
  const int64_t length = n / strata, longer = n % strata;
  const int64_t begin = stratum * length + (stratum < longer ? stratum : longer);
  uint64_t hash = (static_cast<uint64_t>(stratum) + 1) * 0x9e3779b97f4a7c15u;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
  const uint64_t run = static_cast<uint64_t>(length + (stratum < longer));
  return begin + static_cast<int64_t>((hash >> 40) * run >> 24);
}

// Ranks (from 1, largest first) of two members of a sample that bracket the k-th largest of n
// values. They are four standard deviations away from its expected rank. The k-th largest is
// outside the bracket for about one in 15,000 unordered inputs. high ≤ 0 means no upper bound, and
// low > size means no lower bound.
struct SampleRanks {
  int64_t high;
  int64_t low;
};

ADAPRUNER_HD inline SampleRanks bracket_ranks(int64_t k, int64_t n, int64_t size) {
  const double share = static_cast<double>(k) / static_cast<double>(n);
  const double center = share * static_cast<double>(size);
  const double margin = 4.0 * std::sqrt(center * (1.0 - share)) + 4.0;
  return {static_cast<int64_t>(std::floor(center - margin)),
          static_cast<int64_t>(std::ceil(center + margin))};
}

// Counts of a pass over all values, for a bracket of keys low < high, or low = high.
struct PassCounts {
  int64_t from_high;   // key ≥ high
  int64_t equal_high;  // key = high
  int64_t inside;      // low < key < high
  int64_t equal_low;   // key = low; 0 if low = high
};

// Where the k-th largest value is, and its rank there.
enum class Place { kDone, kAtHigh, kInside, kAtLow, kOutside };
struct PlaceRank {
  Place place;  // kDone: exactly k values have a key ≥ high
  int64_t rank;
};

ADAPRUNER_HD inline PlaceRank find_place(const PassCounts& counts, int64_t k) {
  int64_t rank = k - counts.from_high;
  if (rank == 0) return {Place::kDone, 0};
  if (rank < 0) {
    rank += counts.equal_high;
    return {rank > 0 ? Place::kAtHigh : Place::kOutside, rank};
  }
  if (rank <= counts.inside) return {Place::kInside, rank};
  rank -= counts.inside;
  return {rank <= counts.equal_low ? Place::kAtLow : Place::kOutside, rank};
}

// --- Bins of equal width in value ----------------------------------------------------------------

// A first digit for values: `bins` bins of equal width between low and high. The outer bins are
// open. This digit spreads values better than the leading bits of the key, most of which are bits
// of the exponent and rarely differ.
struct ValueBins {
  float low;
  float high;
  float scale;
};

// If the bounds are too close together, there is one bin for all values. Otherwise no edge between
// two bins is a subnormal number. So a thread that flushes subnormal numbers to zero has the same
// bins.
ADAPRUNER_HD inline ValueBins value_bins(float low, float high, int bins) {
  const float scale = static_cast<float>(bins - 1) / (high - low);
  const bool usable = high - low > 1e-20f && scale > 0;
  return usable ? ValueBins{low, high, scale} : ValueBins{0, 0, 0};
}

// The bin of x, in [0, bins). It does not decrease as x grows. NaN is in the first bin.
ADAPRUNER_HD inline int32_t value_bin(const ValueBins& bins, float x) {
  x = x > bins.low ? x : bins.low;
  x = x < bins.high ? x : bins.high;
  return static_cast<int32_t>((x - bins.low) * bins.scale);
}

// The least key whose bin is at least `bin`, or kHighestKey + 1 if there is none. It bisects
// value_bin itself, so that rounding needs no analysis.
ADAPRUNER_HD inline uint32_t first_key_of_bin(const ValueBins& bins, int32_t bin) {
  uint32_t low = kLowestKey, high = kHighestKey + 1;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (value_bin(bins, key_value(middle)) >= bin) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace adapruner
