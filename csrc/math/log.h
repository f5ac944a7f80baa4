// log without a library call, for the same reasons as exp.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "platform.h"

namespace adapruner {

// log(x) of a normal, finite x > 0, relative error ≤ 1e−15.
ADAPRUNER_HD inline double log_finite(double x) {
  // x = m·2^k with m in [√½, √2).
  constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcd, kOne = 0x3ff0000000000000;
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint64_t biased = (bits + (kOne - kRootHalf)) >> 52;  // k + 1023
  const uint64_t m_bits = bits - (biased << 52) + kOne;
  const uint64_t k_bits = biased + 0x4330000000000000;  // bits of the double 2⁵² + k + 1023
  double m, k;
  std::memcpy(&m, &m_bits, sizeof m);
  std::memcpy(&k, &k_bits, sizeof k);
  k -= 4503599627370496.0 + 1023.0;
  // log m = 2·artanh s = 2·(s + s³/3 + s⁵/5 + …), |s| ≤ 0.172.
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double p = 1.0 / 19;
  p = p * z + 1.0 / 17;
  p = p * z + 1.0 / 15;
  p = p * z + 1.0 / 13;
  p = p * z + 1.0 / 11;
  p = p * z + 1.0 / 9;
  p = p * z + 1.0 / 7;
  p = p * z + 1.0 / 5;
  p = p * z + 1.0 / 3;
  const double tail = 2.0 * s * (z * p) + k * 1.90821492927058770002e-10;
  return k * 6.93147180369123816490e-01 + (2.0 * s + tail);
}

// As log_finite, and log 0 = −inf, log +inf = +inf, NaN gives NaN. Subnormal and negative values
// are not supported.
ADAPRUNER_HD inline double log_positive(double x) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double result = log_finite(x);
  return x == 0 ? -kInfinity : x < kInfinity ? result : x;
}

}  // namespace adapruner
