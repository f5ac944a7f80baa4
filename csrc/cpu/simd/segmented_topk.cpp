#include "segmented_topk.h"

#include <cstring>
#include <limits>
#include <type_traits>

#include "compare.h"

namespace adapruner::ADAPRUNER_ISA {
namespace {

constexpr int64_t kWord = 64;
constexpr int32_t kSignBit = std::numeric_limits<int32_t>::min();  // see signed_key

// A row is the segment plus one, as an unsigned number. Segment −1 is row 0.
template <typename T>
bool rows_of(const T* segments, int64_t n, int64_t count, uint32_t* rows) {
  using Row = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  const Row last = static_cast<Row>(count);
  int outside = 0;
#pragma omp simd reduction(| : outside)
  for (int64_t j = 0; j < n; ++j) {
    const Row row = static_cast<Row>(segments[j]) + 1;
    outside |= row > last;
    rows[j] = row > last ? 0 : static_cast<uint32_t>(row);
  }
  return outside == 0;
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
    const float* values = x + i;
    float copy[kWord];  // copy of the last, short word, so that no read is outside x
    if (size < kWord) {
      std::memcpy(copy, values, static_cast<size_t>(size) * sizeof(float));
      values = copy;
    }
    uint32_t low[kWord], high[kWord];
    for (int64_t j = 0; j < size; ++j) {
      uint32_t row = rows[i + j];
      // Without this, compilers use a gather, which is slower on some processors.
      __asm__("" : "+r"(row));
      low[j] = ranges[row].low;
      high[j] = ranges[row].high;
    }
    uint64_t above = 0, below = 0;
    for (int j = 0; j < kWord; j += kWidth) {
      const Lanes keys = keys_of(load_bits(values + j));
      above |= greater(keys, load_bits(high + j) ^ kSignBit) << j;
      below |= greater(load_bits(low + j) ^ kSignBit, keys) << j;
    }
    const uint64_t valid = ~uint64_t{0} >> (kWord - size);
    candidates[i / kWord] = ~above & ~below & valid;
    above &= valid;
    for (int64_t b = 0; b < (size + 7) / 8; ++b) {
      kept[i / 8 + b] = static_cast<uint8_t>(above >> (8 * b));
    }
  }
}

}  // namespace adapruner::ADAPRUNER_ISA
