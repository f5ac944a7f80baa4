// The exact top-k: an order-preserving integer key, its digits, and the small decisions that the
// loops and kernels share. Every loop that uses them is exact whatever brackets, samples or bins it
// chooses: those only decide how much work is left for the exact part.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "platform.h"

namespace adapruner {

constexpr uint32_t kZeroKey = 0x80000000u;
constexpr uint32_t kLowestKey = 0x00800000u;   // order_key(−inf)
constexpr uint32_t kHighestKey = 0xff800000u;  // order_key(+inf)

// Key of a float32 that is not NaN: x < y exactly if order_key(x) < order_key(y); −0 and +0 share
// kZeroKey. The keys of all such values are the integers from kLowestKey to kHighestKey, no gaps.
ADAPRUNER_HD inline uint32_t order_key(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t negative = 0u - (bits >> 31);  // all ones where the sign is set
  return (((bits & 0x7fffffffu) ^ negative) - negative) + kZeroKey;
}

// The bits of the float that a key is of; kZeroKey gives +0. Keys beyond the range of numbers give
// NaN.
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

// The same order in a signed integer, for instruction sets that compare only those.
ADAPRUNER_HD inline int32_t signed_key(uint32_t key) {
  return static_cast<int32_t>(key ^ 0x80000000u);
}

// --- Digits of keys ------------------------------------------------------------------------------

// Keys low … high, both included. Here and below a Key is any unsigned integer type.
template <typename Key>
struct Range {
  Key low;
  Key high;
};
using KeyRange = Range<uint32_t>;

constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;

// Number of low bits that a digit of `bits` bits leaves undecided: the digits
// (key − range.low) >> shift of the keys of a range are then below 2^bits. 0: a digit is one key.
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

// Where the k-th largest lies: its digit, and its rank (from 1, largest first) among those that
// have that digit. Needs 1 ≤ k ≤ the sum of the histogram.
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

// A search for the rank-th largest (from 1) among the `inside` keys that lie in a range, digit by
// digit, with `shift` for the next one.
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

// Whether all keys from range.low on are those of a rank up to the one that is sought, or one key
// alone is left, which may be the key of several.
template <typename Key>
ADAPRUNER_HD inline bool decided(const Search<Key>& search) {
  return search.rank == search.inside || search.range.low == search.range.high;
}

// The search among the keys that have the digit found, `inside` of them.
template <typename Key>
ADAPRUNER_HD inline Search<Key> narrowed(const Search<Key>& search, const DigitRank& found,
                                         int64_t inside, int bits = kDigitBits) {
  const uint32_t digit = static_cast<uint32_t>(found.digit);
  return begin_search(digit_range(search.range, search.shift, digit), found.rank, inside, bits);
}

// A search as ranks share it: int64 [3], the lowest and the highest key, and the rank of the one
// sought among those in between. What is out of bounds is brought to them.
ADAPRUNER_HD inline Search<uint32_t> search_in(const int64_t* key_range) {
  int64_t low = key_range[0], high = key_range[1];
  low = low < kLowestKey ? kLowestKey : low > kHighestKey ? kHighestKey : low;
  high = high < low ? low : high > kHighestKey ? kHighestKey : high;
  const KeyRange range{static_cast<uint32_t>(low), static_cast<uint32_t>(high)};
  return begin_search(range, key_range[2], 0);
}

ADAPRUNER_HD inline void write_range(const Search<uint32_t>& search, int64_t* key_range) {
  key_range[0] = search.range.low;
  key_range[1] = search.range.high;
  key_range[2] = search.rank;
}

// --- Values and their indices in one integer -----------------------------------------------------

__extension__ typedef unsigned __int128 uint128_t;

// Entries of n values: in descending order they are in descending order of the values, equal ones
// by ascending index, so that no two are equal. An Entry is a uint64_t, for n up to 2³², or a
// uint128_t.
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
  // All those with a key in the range.
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

// The lowest `count` of the bits that are set, or all where there are no more.
template <typename Word>
ADAPRUNER_HD inline Word first_bits(Word bits, int64_t count) {
  Word rest = bits;
  for (; count > 0 && rest != 0; --count) rest &= rest - 1;
  return bits ^ rest;
}

// --- A sample of the data brackets the threshold -------------------------------------------------

// Size of the sample for n values; 0: too few to be worth one. It costs a time in proportion to its
// size, and saves one for the band, which has some n/√size values: the sum is least around n^⅔.
ADAPRUNER_HD inline int64_t sample_size(int64_t n) {
  constexpr int64_t kTooFew = int64_t{1} << 14, kMost = int64_t{1} << 20;
  if (n <= kTooFew) return 0;
  const double root = std::cbrt(static_cast<double>(n));
  const int64_t size = static_cast<int64_t>(0.8 * root * root);
  return size < kMost ? size : kMost;
}

// Index of the sample's member from one of `strata` runs of equal length that cut [0, n): at a
// place in the run that is fixed by a hash, so that data with a period does not mislead it.
ADAPRUNER_HD inline int64_t sample_index(int64_t stratum, int64_t strata, int64_t n) {
  const int64_t length = n / strata, longer = n % strata;
  const int64_t begin = stratum * length + (stratum < longer ? stratum : longer);
  uint64_t hash = (static_cast<uint64_t>(stratum) + 1) * 0x9e3779b97f4a7c15u;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
  const uint64_t run = static_cast<uint64_t>(length + (stratum < longer));
  return begin + static_cast<int64_t>((hash >> 40) * run >> 24);
}

// Ranks (from 1, largest first) of the members of a sample that bracket the k-th largest of n, four
// standard deviations away: it lies outside in one of some 15,000 unordered inputs. high ≤ 0: no
// upper bound; low > size: no lower bound.
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

// What a pass over all values finds for a bracket of keys low < high, or one key twice.
struct PassCounts {
  int64_t from_high;   // key ≥ high
  int64_t equal_high;  // key = high
  int64_t inside;      // low < key < high
  int64_t equal_low;   // key = low, but for low = high
};

// Where the k-th largest is, and its rank there.
enum class Place { kDone, kAtHigh, kInside, kAtLow, kOutside };
struct PlaceRank {
  Place place;  // kDone: those with a key ≥ high are k
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

// A first digit that spreads values better than leading bits of the key, most of which tell
// exponents apart that do not occur: `bins` bins between low and high, the outer ones open.
struct ValueBins {
  float low;
  float high;
  float scale;
};

// Bounds too close together give one bin for all. Far apart, no edge between two bins can lie among
// the subnormal numbers, so a thread that flushes those to zero has the same bins as one that does
// not.
ADAPRUNER_HD inline ValueBins value_bins(float low, float high, int bins) {
  const float scale = static_cast<float>(bins - 1) / (high - low);
  const bool usable = high - low > 1e-20f && scale > 0;
  return usable ? ValueBins{low, high, scale} : ValueBins{0, 0, 0};
}

// The bin of x in [0, bins), which does not decrease as x grows; NaN has the first.
ADAPRUNER_HD inline int32_t value_bin(const ValueBins& bins, float x) {
  x = x > bins.low ? x : bins.low;
  x = x < bins.high ? x : bins.high;
  return static_cast<int32_t>((x - bins.low) * bins.scale);
}

// The least key whose bin is at least `bin`; kHighestKey + 1 where there is none. By bisection on
// value_bin itself, so that its rounding needs no thought.
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
