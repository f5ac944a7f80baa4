// exp without a library call, so that loops over it vectorise and that every compiler, instruction
// set and device gives the same bits (no contraction, no fast math: only IEEE + − × and
// comparisons).
#pragma once

#include <cstdint>
#include <cstring>

#include "platform.h"

namespace adapruner {

// exp(x) for x ≤ 0, the case of a softmax; relative error ≤ 1e−7 down to x = −87, below that 0.
// NaN gives NaN. Values above 0 are outside the contract.
ADAPRUNER_HD inline float exp_nonpositive(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5·2²³: adding it rounds to an integer in the low bits
  const float shifted = x * 1.44269504088896341f + kMagic;
  const float n = shifted - kMagic;
  float r = x - n * 0.693145751953125f;  // ln 2 in two parts: n·high is exact
  r = r - n * 1.42860677e-6f;
  // Degree-6 polynomial on |r| ≤ ln 2 / 2: minimax (3e−9), as Taylor's would err by 1.7e−7 at the
  // ends.
  float p = 0.0013814540179f;
  p = p * r + 0.0083687451089f;
  p = p * r + 0.0416683907835f;
  p = p * r + 0.1666652039904f;
  p = p * r + 0.4999999343213f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // Scale by 2ⁿ. The low bits of `shifted` hold n; garbage for x < −87, which is selected away.
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const int32_t scale_bits = static_cast<int32_t>(static_cast<uint32_t>(bits) << 23) + 0x3f800000;
  float scale;
  std::memcpy(&scale, &scale_bits, sizeof scale);
  return x < -87.0f ? 0.0f : p * scale;
}

// exp(x) for |x| ≤ 700; values beyond are clamped to that range; relative error ≤ 1e−15. NaN gives
// NaN.
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
