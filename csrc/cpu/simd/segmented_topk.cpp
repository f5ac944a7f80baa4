#include "segmented_topk.h"

#include <cstring>

namespace adapruner::ADAPRUNER_ISA {
namespace {

constexpr int64_t kWord = 64;

template <typename T>
bool rows_of(const T* segments, int64_t n, int64_t count, uint32_t* rows) {
  int outside = 0;
#pragma omp simd reduction(| : outside)
  for (int64_t j = 0; j < n; ++j) {
    const int64_t segment = segments[j];
    const bool inside = segment >= 0 && segment < count;
    outside |= !inside && segment != -1;
    rows[j] = inside ? static_cast<uint32_t>(segment) + 1 : 0;
  }
  return outside == 0;
}

// Bit j of the result: byte j, each 0 or 1. A product gathers eight bytes into the highest.
uint64_t pack(const uint8_t* flags) {
  uint64_t word = 0;
  for (int j = 0; j < kWord; j += 8) {
    uint64_t eight = 0;
    for (int b = 0; b < 8; ++b) eight |= uint64_t{flags[j + b]} << (8 * b);
    word |= (eight * 0x0102040810204080u >> 56) << j;
  }
  return word;
}

void split_word(const float* x, const uint32_t* rows, int64_t n, const KeyRange* ranges,
                uint64_t& kept, uint64_t& candidates) {
  uint8_t above[kWord] = {}, from[kWord] = {};
  for (int64_t j = 0; j < n; ++j) {
    const uint32_t key = order_key(x[j]);
    const KeyRange range = ranges[rows[j]];
    above[j] = key > range.high;
    from[j] = key >= range.low;
  }
  kept = pack(above);
  candidates = pack(from) & ~kept;
}

}  // namespace

#define ADAPRUNER_DEFINE_ROWS(T)                                                \
  bool load_rows(const T* segments, int64_t n, int64_t count, uint32_t* rows) { \
    return rows_of(segments, n, count, rows);                                   \
  }
ADAPRUNER_DEFINE_ROWS(uint8_t)
ADAPRUNER_DEFINE_ROWS(int8_t)
ADAPRUNER_DEFINE_ROWS(int16_t)
ADAPRUNER_DEFINE_ROWS(int32_t)
ADAPRUNER_DEFINE_ROWS(int64_t)
#undef ADAPRUNER_DEFINE_ROWS

bool value_slots(const float* x, const uint32_t* rows, int64_t n, const ValueBins& bins, int bits,
                 uint32_t* slots) {
  int nan = 0;
#pragma omp simd reduction(| : nan)
  for (int64_t j = 0; j < n; ++j) {
    nan |= x[j] != x[j];
    slots[j] = (rows[j] << bits) + static_cast<uint32_t>(value_bin(bins, x[j]));
  }
  return nan != 0;
}

void split_rows(const float* x, const uint32_t* rows, int64_t n, const KeyRange* ranges,
                uint8_t* kept, uint64_t* candidates) {
  for (int64_t i = 0; i < n; i += kWord) {
    const int64_t size = n - i < kWord ? n - i : kWord;
    uint64_t word;
    split_word(x + i, rows + i, size, ranges, word, candidates[i / kWord]);
    for (int64_t b = 0; b < (size + 7) / 8; ++b) {
      kept[i / 8 + b] = static_cast<uint8_t>(word >> (8 * b));
    }
  }
}

}  // namespace adapruner::ADAPRUNER_ISA
