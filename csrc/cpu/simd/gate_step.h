// Updates of many visited gates at a time.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace adapruner {

// Number of gates that are updated together. Their data fit a core's nearest cache.
constexpr int64_t kGateBlock = 512;

// step_block     m[j] ← stepped(state, m[j], ages[j], pressures[j]) for n ≤ kGateBlock gates.
#define ADAPRUNER_DECLARE(isa)                                                                  \
  namespace isa {                                                                               \
  void step_block(const int64_t* state, float* m, const uint8_t* ages, const double* pressures, \
                  int64_t n);                                                                   \
  }
ADAPRUNER_FOR_EACH_ISA(ADAPRUNER_DECLARE)
#undef ADAPRUNER_DECLARE

}  // namespace adapruner
