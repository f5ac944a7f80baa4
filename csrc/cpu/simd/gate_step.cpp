#include "gate_step.h"

#include <cstring>

#include "../../math/gate.h"

namespace adapruner::ADAPRUNER_ISA {

GateSums step_block(const int64_t* state, float* m, const uint8_t* ages, const double* pressures,
                    int64_t n) {
  int64_t constants[kStateSize];  // its own, so that nothing written below can change them
  std::memcpy(constants, state, sizeof constants);
  const double slope = read_double(constants, kSlope);
  int64_t fixed = 0, open = 0;
#pragma omp simd reduction(+ : fixed, open)
  for (int64_t j = 0; j < n; ++j) {
    const float before = m[j];
    const float after = stepped(constants, before, ages[j], pressures[j]);
    fixed += gate_fixed(slope, after) - gate_fixed(slope, before);
    open += (after > 0) - (before > 0);
    m[j] = after;
  }
  return {fixed, open};
}

}  // namespace adapruner::ADAPRUNER_ISA
