// Vectors of floats, as wide as the instruction set has them: loads and stores for every type of
// logits, whole or partial, reductions, and exp.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../math/exp.h"
#include "width.h"

namespace adapruner::ADAPRUNER_ISA {
namespace {

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));
typedef uint16_t Shorts __attribute__((vector_size(2 * kWidth)));

inline Floats spread(float x) { return Floats{} + x; }

inline Floats load(const float* x) {
  Floats v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

inline void store(float* x, Floats v) { std::memcpy(x, &v, sizeof v); }

inline Floats load(const c10::BFloat16* x) {
  Shorts half;
  std::memcpy(&half, x, sizeof half);
  return (Floats)(__builtin_convertvector(half, Words) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline void store(c10::BFloat16* x, Floats v) {
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words quiet = (bits >> 16) | 0x40u;
  const Shorts half = __builtin_convertvector(v == v ? rounded : quiet, Shorts);
  std::memcpy(x, &half, sizeof half);
}

inline Floats load(const c10::Half* x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
#elif defined(__AVX2__)
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
#else
  Floats v;
  for (int j = 0; j < kWidth; ++j) v[j] = static_cast<float>(x[j]);
  return v;
#endif
}

inline void store(c10::Half* x, Floats v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtps_ph((__m512)v, 0));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm256_cvtps_ph((__m256)v, 0));
#else
  for (int j = 0; j < kWidth; ++j) x[j] = static_cast<c10::Half>(v[j]);
#endif
}

// The first n < kWidth values at x. The other lanes are `rest`.
template <typename T>
inline Floats load_part(const T* x, int64_t n, float rest) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    const __mmask16 lanes = static_cast<__mmask16>((1u << n) - 1);
    return (Floats)_mm512_mask_loadu_ps(_mm512_set1_ps(rest), lanes, x);
  }
#endif
  T all[kWidth];
  for (int64_t j = 0; j < n; ++j) all[j] = x[j];
  for (int64_t j = n; j < kWidth; ++j) all[j] = static_cast<T>(rest);
  return load(all);
}

template <typename T>
inline void store_part(T* x, int64_t n, Floats v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    _mm512_mask_storeu_ps(x, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
    return;
  }
#endif
  T all[kWidth];
  store(all, v);
  for (int64_t j = 0; j < n; ++j) x[j] = all[j];
}

// As above, for n ≤ kWidth values.
template <typename T>
inline Floats load_some(const T* x, int64_t n, float rest) {
  return n == kWidth ? load(x) : load_part(x, n, rest);
}

template <typename T>
inline void store_some(T* x, int64_t n, Floats v) {
  if (n == kWidth) {
    store(x, v);
  } else {
    store_part(x, n, v);
  }
}

// The larger value in each lane. If a is NaN, it is b.
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline float largest(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float result = v[0];
  for (int j = 1; j < kWidth; ++j) result = v[j] > result ? v[j] : result;
  return result;
#endif
}

inline float sum(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) v[j] += v[j + half];
  }
  return v[0];
#endif
}

// exp_nonpositive of csrc/math/exp.h, with the same accuracy.
using adapruner::exp_nonpositive;
inline Floats exp_nonpositive(Floats x) {
#if defined(__AVX512F__)
  x = (Floats)_mm512_max_ps(_mm512_set1_ps(kExpLowest), (__m512)x);  // NaN stays
  const Floats scaled = x * kLog2E;
  const Floats n = (Floats)_mm512_roundscale_ps((__m512)scaled, 0);
  return (Floats)_mm512_scalef_ps((__m512)exp2_fraction(x * kLog2E - n), (__m512)n);
#else
  const Ints tiny = x < -87.0f;
  x = tiny ? spread(-88.0f) : x;
  const Floats shifted = x * kLog2E + kRoundToInteger;
  const Floats p = exp2_fraction(x * kLog2E - (shifted - kRoundToInteger));
  const Floats scale = (Floats)(((Words)shifted << 23) + 0x3f800000u);
  return tiny ? Floats{} : p * scale;
#endif
}

}  // namespace
}  // namespace adapruner::ADAPRUNER_ISA
