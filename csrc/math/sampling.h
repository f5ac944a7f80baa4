// Random keys. The samples with the largest keys are a draw without replacement, with chances in
// proportion to exp(scale·min(m, ceiling))·age^turns (Gumbel-top-k: Kool, van Hoof and Welling,
// ICML 2019). There are only IEEE +, −, ×, ÷ and comparisons, so that every processor and device
// gives the same bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "log.h"
#include "permutation.h"
#include "platform.h"
#include "state.h"

namespace adapruner {

// u = (x + ½)·2⁻⁵² exactly, where x is the upper 52 bits of the hash. u is between 2⁻⁵³ and 1 −
// 2⁻⁵³. With one bit more, the sum could round up to 1.
ADAPRUNER_HD inline double open_unit(uint64_t hash) {
  const uint64_t bits = hash >> 12 | 0x3ff0000000000000u;
  double from_one;  // 1 + x·2⁻⁵²
  std::memcpy(&from_one, &bits, sizeof from_one);
  return from_one - 0x1.fffffffffffffp-1;  // 1 − 2⁻⁵³
}

// A standard exponential number from a hash, between 2⁻⁵³ and 36.8. Minus its logarithm is Gumbel
// noise.
ADAPRUNER_HD inline double exponential(uint64_t hash) { return -log_finite(open_unit(hash)); }

// turns·log(max(age, 1)).
ADAPRUNER_HD inline double age_term(double turns, int age) {
  return age <= 1 ? 0.0 : turns * log_finite(static_cast<double>(age));
}

// The key of a sample. `of_age` is age_term of its age, and `of_hash` is the exponential of its
// sample_hash.
ADAPRUNER_HD inline float sampling_key(double scale, float gate_logit, double ceiling,
                                       double of_age, double of_hash) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const double m = gate_logit;
  const double capped = m > ceiling ? ceiling : m;  // NaN stays: it is not above the ceiling
  const double sum = scale * capped + of_age - log_finite(of_hash);
  const float key = static_cast<float>(sum);
  // Always the same NaN, because devices make different ones.
  const float number = key == key ? key : std::numeric_limits<float>::quiet_NaN();
  return gate_logit == -kInfinity ? -kInfinity : number;
}

}  // namespace adapruner
