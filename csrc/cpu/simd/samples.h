// Formulas of csrc/math/gate.h over the samples of a batch: weights before losses are known, and
// pressures after that. The same bits on every instruction set.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace adapruner {

struct SampleLosses {
  const int64_t* state;
  double balance;         // balance_pressure(state)
  const double* sums;     // [n], losses of each sample's rows that are not ignored
  const int64_t* counts;  // [n], number of these rows
  bool single;            // true if losses are given out as float
  double* losses;         // [n], written: ℓ, 0 if all rows are ignored
  float* pressures;       // [n], written: those of the losses that are given out
};

#define ADAPRUNER_DECLARE(isa)                                                            \
  namespace isa {                                                                         \
  /* weights [n]: those of the samples ids [n], all of them indices of gate_logits. */    \
  void sample_weights(const int64_t* state, const float* gate_logits, const int64_t* ids, \
                      int64_t n, double* weights);                                        \
  void sample_losses(const SampleLosses& work, int64_t n);                                \
  }
ADAPRUNER_FOR_EACH_ISA(ADAPRUNER_DECLARE)
#undef ADAPRUNER_DECLARE

}  // namespace adapruner
