// exp without a library call, so that loops over it vectorise. Every compiler, instruction set and
// device gives the same bits: there are only IEEE +, −, × and comparisons, without contraction or
// fast math.
#pragma once

#include <cstdint>
#include <cstring>

#include "platform.h"

namespace adapruner {

// 2^f for |f| ≤ ½. The relative error is at most 1.1e−7 in exact arithmetic. 2^0 is exactly 1. F is
// float, or a vector of floats.
template <typename F>
ADAPRUNER_HD inline F exp2_fraction(F f) {
  F p = f * 0.00132647273f + 0.00967151299f;
  p = p * f + 0.0555073358f;
  p = p * f + 0.240222424f;
  p = p * f + 0.693147004f;
  return p * f + 1.0f;
}

constexpr float kLog2E = 1.44269504088896341f;
// exp of a smaller number rounds to 0 in float.
constexpr float kExpLowest = -104.0f;
constexpr float kRoundToInteger = 12582912.0f;  // 1.5·2²³: a sum with it is a whole number

// exp(x) for x ≤ 0, as a softmax needs it. The relative error is at most 3e−7 + |x|·1e−7 down to x
// = −87. Below that, results are subnormal and may be 0. NaN gives NaN. x > 0 is not supported.
// csrc/cpu/simd/lanes.h has the same function for vectors.
ADAPRUNER_HD inline float exp_nonpositive(float x) {
  x = x < -87.0f ? -88.0f : x;  // false for NaN, which stays
  const float shifted = x * kLog2E + kRoundToInteger;
  const float p = exp2_fraction(x * kLog2E - (shifted - kRoundToInteger));
  // The low bits of `shifted` hold the exponent.
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const uint32_t scale_bits = (bits << 23) + 0x3f800000u;
  float scale;
  std::memcpy(&scale, &scale_bits, sizeof scale);
  return x < -87.0f ? 0.0f : p * scale;
}

// exp(x) for |x| ≤ 700, with a relative error of at most 1e−15. x is clamped to this range. NaN
// gives NaN.
ADAPRUNER_HD inline double exp_clamped(double x) {
  x = x > 700.0 ? 700.0 : x;
  x = x < -700.0 ? -700.0 : x;
  constexpr double kMagic = 6755399441055744.0;  // 1.5·2⁵²
  const double shifted = x * 1.4426950408889634 + kMagic;
  const double n = shifted - kMagic;
  double r = x - n * 6.93147180369123816490e-01;
  r = r - n * 1.90821492927058770002e-10;
  double p = 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  int64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const int64_t scale_bits =
      static_cast<int64_t>(static_cast<uint64_t>(bits) << 52) + 0x3ff0000000000000;
  double scale;
  std::memcpy(&scale, &scale_bits, sizeof scale);
  return p * scale;
}

}  // namespace adapruner
