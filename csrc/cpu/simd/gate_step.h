// The steps of visited gates, many at a time.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace adapruner {

// Gates that are stepped together: what they need fits a core's nearest cache.
constexpr int64_t kGateBlock = 512;

// What a step changes in the state.
struct GateSums {
  int64_t fixed;  // Σ gate_fixed after − before
  int64_t open;   // the same of m > 0
};

// step_block     m[j] ← stepped(state, m[j], ages[j], pressures[j]) for n ≤ kGateBlock gates.
#define ADAPRUNER_DECLARE(isa)                                             \
  namespace isa {                                                          \
  GateSums step_block(const int64_t* state, float* m, const uint8_t* ages, \
                      const double* pressures, int64_t n);                 \
  }
ADAPRUNER_FOR_EACH_ISA(ADAPRUNER_DECLARE)
#undef ADAPRUNER_DECLARE

}  // namespace adapruner
