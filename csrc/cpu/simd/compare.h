// Keys of several floats at a time, and comparisons whose results are bits. Compilers do not
// generate these from plain loops. All operations are on integers, so a thread that flushes
// subnormal numbers to zero gets the same results.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../math/topk.h"
#include "width.h"

namespace adapruner::ADAPRUNER_ISA {
namespace {

typedef int32_t Lanes __attribute__((vector_size(4 * kWidth)));
typedef uint32_t UnsignedLanes __attribute__((vector_size(4 * kWidth)));

// The bits of floats, or integers unchanged.
inline Lanes load_bits(const void* x) {
  Lanes bits;
  std::memcpy(&bits, x, sizeof bits);
  return bits;
}

inline Lanes spread(int32_t x) { return Lanes{} | x; }

// signed_key(order_key(x)) for floats given as bits.
inline Lanes keys_of(Lanes bits) {
  const UnsignedLanes negative = (UnsignedLanes)(bits >> 31);
  return (Lanes)(((UnsignedLanes)(bits & 0x7fffffff) ^ negative) - negative);
}

// Bit j of the result is the comparison of lane j.
inline uint64_t greater(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)(a > b)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)(a > b)));
#else
  uint64_t bits = 0;
  for (int j = 0; j < kWidth; ++j) bits |= static_cast<uint64_t>(a[j] > b[j]) << j;
  return bits;
#endif
}

// Tests "key > bound" directly on the bits of floats, with one exclusive or and one comparison. The
// bits of negative numbers are in descending order, so for a negative bound all bits but the sign
// are inverted.
struct Above {
  Lanes flip;
  Lanes bound;

  explicit Above(uint32_t key) {
    const int32_t turned = key < kZeroKey ? 0x7fffffff : 0;
    flip = spread(turned);
    bound = spread(static_cast<int32_t>(key_bits(key)) ^ turned);
  }

  uint64_t operator()(Lanes bits) const { return greater(bits ^ flip, bound); }
};

inline uint64_t is_nan(Lanes bits) { return greater(bits & 0x7fffffff, spread(0x7f800000)); }

}  // namespace
}  // namespace adapruner::ADAPRUNER_ISA
