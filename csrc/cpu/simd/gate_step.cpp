#include "gate_step.h"

#include <cstring>

#include "../../math/gate.h"

namespace adapruner::ADAPRUNER_ISA {

void step_block(const int64_t* state, float* m, const uint8_t* ages, const double* pressures,
                int64_t n) {
  int64_t constants[kStateSize];  // a copy, which the writes below cannot change
  std::memcpy(constants, state, sizeof constants);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) m[j] = stepped(constants, m[j], ages[j], pressures[j]);
}

}  // namespace adapruner::ADAPRUNER_ISA
