#include "masked_order.h"

#include <cstring>

#include "width.h"

namespace adapruner::ADAPRUNER_ISA {
namespace {

typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));

// High halves of the products. Instructions multiply every other 32-bit word. Compilers would use
// 64-bit products.
inline Words scaled_words(Words x, uint32_t range) {
#if defined(__AVX512F__)
  const __m512i v = (__m512i)x, factor = _mm512_set1_epi32(static_cast<int>(range));
  const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(v, factor), 32);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(v, 32), factor);
  return (Words)_mm512_mask_blend_epi32(0xaaaa, even, odd);
#elif defined(__AVX2__)
  const __m256i v = (__m256i)x, factor = _mm256_set1_epi32(static_cast<int>(range));
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(v, factor), 32);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), factor);
  return (Words)_mm256_blend_epi32(even, odd, 0xaa);
#else
  for (int j = 0; j < kWidth; ++j) x[j] = scaled_word(x[j], range);
  return x;
#endif
}

inline Words load(const uint32_t* x) {
  Words v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

inline void store(uint32_t* x, Words v) { std::memcpy(x, &v, sizeof v); }

constexpr int kStep = 128;
constexpr int kTogether = 4;

// cells[j] ← the cell of position + j, before cycle walking. size ≤ kStep.
void permute_cells(const Permutation& p, uint64_t position, int size, uint64_t* cells) {
  alignas(64) uint32_t rows[kStep] = {};
  alignas(64) uint32_t columns[kStep] = {};
  uint32_t row = static_cast<uint32_t>(position / p.columns);
  uint32_t column = static_cast<uint32_t>(position % p.columns);
  for (int j = 0; j < size; ++row, column = 0) {
    const uint32_t left = p.columns - column;
    const int run = left < static_cast<uint32_t>(size - j) ? static_cast<int>(left) : size - j;
    for (int i = 0; i < run; ++i) {
      rows[j + i] = row;
      columns[j + i] = column + static_cast<uint32_t>(i);
    }
    j += run;
  }
  // Several vectors at a time, because a round is a long chain of dependent operations. Values
  // beyond size are computed too, and not used.
  for (int j = 0; j < size; j += kTogether * kWidth) {
    Words row_of[kTogether], column_of[kTogether];
    for (int v = 0; v < kTogether; ++v) {
      row_of[v] = load(rows + j + v * kWidth);
      column_of[v] = load(columns + j + v * kWidth);
    }
    for (int r = 0; r < p.rounds; r += 2) {
      for (int v = 0; v < kTogether; ++v) two_rounds(p, r, row_of[v], column_of[v], scaled_words);
    }
    for (int v = 0; v < kTogether; ++v) {
      store(rows + j + v * kWidth, row_of[v]);
      store(columns + j + v * kWidth, column_of[v]);
    }
  }
  for (int j = 0; j < size; ++j) {
    cells[j] = static_cast<uint64_t>(rows[j]) * p.columns + columns[j];
  }
}

}  // namespace

int64_t keep_permuted(const Permutation& p, int64_t position, int64_t n, const uint8_t* mask,
                      int64_t* indices) {
  alignas(64) uint64_t cells[kStep];
  int64_t kept = 0;
  for (int64_t begin = 0; begin < n; begin += kStep) {
    const int size = n - begin < kStep ? static_cast<int>(n - begin) : kStep;
    permute_cells(p, static_cast<uint64_t>(position + begin), size, cells);
    for (int j = 0; j < size; ++j) {
      if (cells[j] >= p.n) cells[j] = walk_inside(p, cells[j]);
      // Requests all bytes of the mask before the first one is used.
      __builtin_prefetch(mask + cells[j] / 8);
    }
    for (int j = 0; j < size; ++j) {
      indices[kept] = static_cast<int64_t>(cells[j]);
      kept += mask[cells[j] / 8] >> (cells[j] % 8) & 1;
    }
  }
  return kept;
}

}  // namespace adapruner::ADAPRUNER_ISA
