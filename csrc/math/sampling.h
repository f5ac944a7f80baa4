// Keys by whose top-k samples are drawn without replacement, with chances in proportion to
// exp(scale·min(m, ceiling))·age^turns (Gumbel-top-k: Kool, van Hoof and Welling, ICML 2019).
// IEEE + − × ÷ and comparisons alone: the same bits everywhere.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "log.h"
#include "permutation.h"
#include "platform.h"
#include "state.h"

namespace adapruner {

// u = (x + ½)·2⁻⁵², exactly, of the hash's upper 52 bits x: from 2⁻⁵³ to 1 − 2⁻⁵³. One bit more,
// and the sum would round up to 1.
ADAPRUNER_HD inline double open_unit(uint64_t hash) {
  const uint64_t bits = hash >> 12 | 0x3ff0000000000000u;
  double from_one;  // 1 + x·2⁻⁵²
  std::memcpy(&from_one, &bits, sizeof from_one);
  return from_one - 0x1.fffffffffffffp-1;  // 1 − 2⁻⁵³
}

// A standard exponential number of a hash, from 2⁻⁵³ to 36.8; less its logarithm is Gumbel noise.
ADAPRUNER_HD inline double exponential(uint64_t hash) { return -log_finite(open_unit(hash)); }

// turns·log(max(age, 1)).
ADAPRUNER_HD inline double age_term(double turns, int age) {
  return age <= 1 ? 0.0 : turns * log_finite(static_cast<double>(age));
}

// The key of a sample, with age_term of its age and the exponential of its sample_hash.
ADAPRUNER_HD inline float sampling_key(double scale, float gate_logit, double ceiling,
                                       double of_age, double of_hash) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const double m = gate_logit;
  const double capped = m > ceiling ? ceiling : m;  // a NaN is no more than the ceiling
  const double sum = scale * capped + of_age - log_finite(of_hash);
  const float key = static_cast<float>(sum);
  // Of the many NaNs one, because devices make different ones.
  const float number = key == key ? key : std::numeric_limits<float>::quiet_NaN();
  return gate_logit == -kInfinity ? -kInfinity : number;
}

}  // namespace adapruner
