#include "topk.h"

#include <cstring>

#include "../../math/gate.h"
#include "compare.h"

namespace adapruner::ADAPRUNER_ISA {
namespace {

constexpr int64_t kWord = 64;

// Calls f(values, i, valid) for each run of 64 values, from i on. `valid` has a bit for each value
// that exists. The last, short run is read from a copy, so that no read is outside x.
template <typename F>
void each_word(const float* x, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kWord <= n; i += kWord) f(x + i, i, ~uint64_t{0});
  if (i < n) {
    float rest[kWord] = {};
    std::memcpy(rest, x + i, static_cast<size_t>(n - i) * sizeof(float));
    f(static_cast<const float*>(rest), i, (uint64_t{1} << (n - i)) - 1);
  }
}

// The results of test(lanes) for the 64 values at x, as bits.
template <typename Test>
inline uint64_t word_of(const float* x, const Test& test) {
  uint64_t word = 0;
#pragma GCC unroll 16
  for (int j = 0; j < kWord; j += kWidth) word |= test(load_bits(x + j)) << j;
  return word;
}

inline int64_t bytes_at(int64_t i, int64_t n) { return n - i < kWord ? (n - i + 7) / 8 : 8; }

// The bits of values i … i + 63 of a mask of n values.
inline uint64_t read_word(const uint8_t* mask, int64_t i, int64_t n) {
  uint64_t word = 0;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  if (n - i >= kWord) {
    std::memcpy(&word, mask + i / 8, sizeof word);
    return word;
  }
#endif
  for (int64_t b = 0; b < bytes_at(i, n); ++b) word |= uint64_t{mask[i / 8 + b]} << (8 * b);
  return word;
}

inline void write_word(uint8_t* mask, int64_t i, int64_t n, uint64_t word) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  if (n - i >= kWord) {
    std::memcpy(mask + i / 8, &word, sizeof word);
    return;
  }
#endif
  for (int64_t b = 0; b < bytes_at(i, n); ++b)
    mask[i / 8 + b] = static_cast<uint8_t>(word >> (8 * b));
}

}  // namespace

int64_t scan_bracket(const float* x, int64_t n, const Bracket& bracket, uint32_t offset,
                     uint8_t* mask, BandEntry* band, BracketCounts& counts, bool& nan) {
  const Above high(bracket.high - 1), low(bracket.low);
  int64_t appended = 0, from_high_count = 0, above_low_count = 0;
  uint64_t nans = 0;
  each_word(x, n, [&](const float* values, int64_t i, uint64_t valid) {
    const uint64_t from_high = valid & word_of(values, high);
    const uint64_t above_low = valid & word_of(values, low);
    nans |= word_of(values, is_nan);
    write_word(mask, i, n, from_high);
    from_high_count += __builtin_popcountll(from_high);
    above_low_count += __builtin_popcountll(above_low);
    uint64_t rest = above_low & ~from_high;
    const auto append = [&] {
      const int j = __builtin_ctzll(rest | uint64_t{1} << (kWord - 1));
      band[appended] = {order_key(values[j]), offset + static_cast<uint32_t>(i + j)};
      appended += rest != 0;
      rest &= rest - 1;
    };
    // A branch on whether there are one or two entries could not be predicted, so two are always
    // written. Few words have more.
    append();
    append();
    while (rest != 0) append();
  });
  counts.from_high += from_high_count;
  counts.above_low += above_low_count;
  nan |= nans != 0;
  return appended;
}

void sum_gates(const float* x, int64_t n, double slope, int64_t* sums) {
  int64_t gates = 0;
  int32_t open = 0;
#pragma omp simd reduction(+ : gates, open)
  for (int64_t i = 0; i < n; ++i) {
    gates += gate_fixed(slope, x[i]);
    open += x[i] > 0;
  }
  sums[0] += gates;
  sums[1] += open;
}

void count_ties(const float* x, int64_t n, uint32_t key, TieCounts& counts) {
  const Above above_key(key), from_key(key - 1);
  int64_t above_count = 0, equal_count = 0;
  each_word(x, n, [&](const float* values, int64_t, uint64_t valid) {
    const uint64_t larger = word_of(values, above_key), from = word_of(values, from_key);
    above_count += __builtin_popcountll(valid & larger);
    equal_count += __builtin_popcountll(valid & from & ~larger);
  });
  counts.above += above_count;
  counts.equal += equal_count;
}

int64_t rank_ties(const float* x, int64_t n, uint32_t key, int64_t keep, uint8_t* mask) {
  const Above above_key(key), from_key(key - 1);
  int64_t kept = 0;
  each_word(x, n, [&](const float* values, int64_t i, uint64_t valid) {
    const uint64_t found = valid & word_of(values, from_key) & ~word_of(values, above_key);
    if (found == 0) return;
    const int64_t left = keep - kept;
    const uint64_t first = __builtin_popcountll(found) <= left ? found : first_bits(found, left);
    kept += __builtin_popcountll(first);
    write_word(mask, i, n, (read_word(mask, i, n) & ~found) | first);
  });
  return kept;
}

}  // namespace adapruner::ADAPRUNER_ISA
